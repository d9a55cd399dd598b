/** The GPU that the browser gives, and which of the manifest's variants it can run. */
import { DeviceError } from "./errors.js";

export class Device {
  /** Opens the first GPU; the first of `variants` that it can run, of `dtype` if that is given, is `this.variant`. */
  static async open(variants, dtype) {
    if (!globalThis.isSecureContext) throw new DeviceError("WebGPU needs a page from https:// or http://localhost; open it there");
    if (!navigator.gpu)
      throw new DeviceError(
        "this browser has no WebGPU; Chrome and Edge have it from 113 (Android: 121), Safari from 26, Firefox from 141",
      );
    const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
    if (!adapter)
      throw new DeviceError("the browser offers no GPU; update the driver and the browser, or switch on hardware acceleration");
    const asked = variants.filter((variant) => !dtype || variant.dtype === dtype);
    const reasons = asked.map((variant) => lacks(adapter, variant));
    const variant = asked[reasons.indexOf(null)];
    if (!variant)
      throw new DeviceError(`this GPU cannot run the model: ${reasons.join("; ") || `it is not exported in ${dtype}`}`);
    const handle = await adapter.requestDevice({ requiredFeatures: variant.features, requiredLimits: variant.limits });
    return new Device(adapter, handle, variant);
  }

  constructor(adapter, handle, variant) {
    Object.assign(this, { handle, variant, info: adapter.info ?? {}, queue: handle.queue, failure: null });
    this.before = Promise.resolve();
    handle.lost.then(({ message }) => {
      this.failure = new DeviceError(`the GPU was lost (${message}); reload the page, and use a smaller model if it happens again`);
    });
    handle.onuncapturederror = ({ error }) => {
      this.failure ??= new DeviceError(`the GPU refused a command (${error.message}); please report it with the browser's version`);
    };
  }

  /** Throws what the device has failed with, if it has. */
  check() {
    if (this.failure) throw this.failure;
  }

  /** Submits commands when all but the last submission are done: the GPU has work meanwhile, and the queue stays short. */
  async submit(encoder) {
    this.queue.submit([encoder.finish()]);
    const before = this.before;
    this.before = this.queue.onSubmittedWorkDone();
    await before;
    this.check();
  }

  async wait() {
    await this.before;
    await this.queue.onSubmittedWorkDone();
    this.check();
  }

  /** Buffers of these sizes. DeviceError where memory is not enough. */
  async allocate(sizes, usage) {
    this.handle.pushErrorScope("out-of-memory");
    const buffers = sizes.map((size) => this.handle.createBuffer({ size: Math.ceil(size / 16) * 16, usage }));
    if (!(await this.handle.popErrorScope())) return buffers;
    for (const buffer of buffers) buffer.destroy();
    const megabytes = Math.ceil(sizes.reduce((sum, size) => sum + size, 0) / 1e6);
    throw new DeviceError(`the GPU has no ${megabytes} MB left; close other pages and programs, or use a smaller model`);
  }
}

/** Why an adapter cannot run a variant; null if it can. */
function lacks(adapter, { name, features, limits, subgroup_size }) {
  const { subgroupMinSize, subgroupMaxSize } = adapter.info ?? {};
  for (const feature of features) if (!adapter.features.has(feature)) return `${name} needs the feature ${feature}`;
  for (const [limit, needed] of Object.entries(limits))
    if (adapter.limits[limit] < needed) return `${name} needs ${limit} ${needed}, and it has ${adapter.limits[limit]}`;
  if (subgroup_size && (subgroupMinSize !== subgroup_size || subgroupMaxSize !== subgroup_size))
    return `${name} needs subgroups of ${subgroup_size}`;
  return null;
}
