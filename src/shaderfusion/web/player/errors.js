/** What the player throws on purpose: each message names the value, the rule and the remedy, as in errors.py. */
class ShaderfusionError extends Error {
  name = this.constructor.name;
}

/** A value that the caller passed is outside its rule. */
export class InputError extends ShaderfusionError {}

/** The export cannot be used: another version, a file that is missing, cut or changed. */
export class ModelError extends ShaderfusionError {}

/** A network gave values that are not finite. */
export class NotFiniteError extends ShaderfusionError {}

/** No usable GPU, too little memory, or a device that was lost. */
export class DeviceError extends ShaderfusionError {}
