/** The GPU that the browser gives, and which of an export's variants it can run. */
import { breath } from "./breath.js";
import { DeviceError } from "./errors.js";

export class Device {
  /** The first GPU, with the first of the manifest's `variants`, of that dtype if one is given, that it can run. */
  static async open(variants, dtype) {
    if (!isSecureContext) throw new DeviceError("WebGPU needs a page from https:// or http://localhost; open it there");
    if (!navigator.gpu || !globalThis.Float16Array)
      throw new DeviceError(
        "this browser has no WebGPU, or is too old; use Chrome or Edge from 135, Safari from 26 or Firefox from 141",
      );
    const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
    if (!adapter) throw new DeviceError("the browser offers no GPU; update its driver, or allow hardware acceleration");
    const asked = variants.filter((variant) => !dtype || variant.dtype === dtype);
    const reasons = asked.map((variant) => whyNot(adapter, variant)), variant = asked[reasons.indexOf("")];
    if (!asked.length) throw new DeviceError(`dtype (=${dtype}) is not in this export; leave it out, or export again`);
    if (!variant) throw new DeviceError(`this device cannot run the model: ${reasons.join("; ")}; try another device`);
    return new Device(await adapter.requestDevice({ requiredFeatures: variant.features }), adapter, variant);
  }

  constructor(handle, adapter, variant) {
    Object.assign(this, { handle, adapter, variant, queue: handle.queue, last: Promise.resolve() });
    handle.lost.then(({ message }) => {
      this.failure = new DeviceError(`the GPU was lost (${message}); reload the page, or use a smaller model`);
    });
    handle.onuncapturederror = ({ error }) => {
      this.failure ??= new DeviceError(`the GPU refused a command (${error.message}); please report it`);
    };
  }

  /** Throws what the device failed with, if it has. */
  check() {
    if (this.failure) throw this.failure;
  }

  /** Throws it once it is known: a promise may be rejected before the browser says why. */
  async fail() {
    await Promise.race([this.handle.lost, new Promise((resolve) => setTimeout(resolve, 1000))]);
    this.check();
    throw new DeviceError("the GPU does not answer; reload the page");
  }

  /** Submits commands, and waits for those submitted before: the GPU has work meanwhile, and its queue stays short. */
  async submit(encoder) {
    this.queue.submit([encoder.finish()]);
    const before = this.last;
    this.last = this.queue.onSubmittedWorkDone();
    await before;
    this.check();
  }

  /** Waits for all that was submitted. */
  async wait() {
    await this.last;
    this.check();
  }

  async allocate(sizes, usage) {
    this.handle.pushErrorScope("out-of-memory");
    const buffers = [];
    for (const size of sizes) {
      buffers.push(this.handle.createBuffer({ size: Math.ceil(size / 16) * 16, usage }));
      await breath();
    }
    if (!(await this.handle.popErrorScope())) return buffers;
    for (const buffer of buffers) buffer.destroy();
    const megabytes = Math.ceil(sizes.reduce((sum, size) => sum + size, 0) / 1e6);
    throw new DeviceError(`the GPU has no ${megabytes} MB of memory left; close other pages, or use a smaller model`);
  }
}

/** What an adapter, or this machine, lacks for a variant; "" if it can run it. */
export function whyNot({ features, limits, info }, { name, memory, ...variant }) {
  const feature = variant.features?.find((feature) => !features.has(feature));
  if (feature) return `${name} needs the feature ${feature}`;
  const fact = Object.keys(variant.info ?? {}).find((fact) => info[fact] !== variant.info[fact]);
  if (fact) return `${name} needs ${fact} ${variant.info[fact]}`;
  const limit = Object.keys(variant.limits).find((limit) => limits[limit] < variant.limits[limit]);
  if (limit) return `${name} needs ${limit} ${variant.limits[limit]}, and it is ${limits[limit]}`;
  const needed = (memory.weights + memory.tensors + memory.loading) / 2 ** 30, gib = navigator.deviceMemory;
  return needed > gib ? `${name} needs ${needed.toFixed(1)} GiB of memory, and this device has about ${gib}` : "";
}
