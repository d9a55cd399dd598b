/** Recorded graphs: pipelines, buffers and bind groups, made once and replayed each step, as in graph/program.py. */
import { breath } from "./breath.js";
import { DeviceError } from "./errors.js";

const PARAMS_ALIGNMENT_BYTES = 256; // WebGPU's largest minUniformBufferOffsetAlignment
const BUFFERS_AT_ONCE = 64;
const PIECE_MS = 50; // what one submission takes at most where it holds several calls
const PIECE_CALLS = 128; // and how many it holds: to encode it drops no frame

/** What the networks of a model share on a device, by the indices that its files of programs have. */
export class Programs {
  modules = [];
  pipelines = [];
  buffers = [];
  params = [];
  networks = {};

  constructor(device) {
    this.device = device;
  }

  /** Makes what a file records; its indices go on after those of the files before. */
  async add({ shaders, pipelines, buffers, params, networks }) {
    const { device } = this, { STORAGE, COPY_SRC, COPY_DST, UNIFORM } = GPUBufferUsage, compiled = [];
    for (const code of shaders) {
      this.modules.push(device.handle.createShaderModule({ code }));
      await breath();
    }
    for (const pipeline of pipelines) {
      compiled.push(this.#compile(pipeline));
      compiled.at(-1).catch(() => {}); // until all are awaited
      await breath();
    }
    for (let i = 0; i < buffers.length; i += BUFFERS_AT_ONCE) {
      const sizes = buffers.slice(i, i + BUFFERS_AT_ONCE);
      this.buffers.push(...(await device.allocate(sizes, STORAGE | COPY_SRC | COPY_DST)));
    }
    const words = new Uint32Array((params.length * PARAMS_ALIGNMENT_BYTES) / 4);
    const [buffer] = await device.allocate([words.byteLength], UNIFORM | COPY_DST);
    for (const [i, own] of params.entries()) {
      this.params.push({ buffer, offset: i * PARAMS_ALIGNMENT_BYTES, size: 4 * own.length });
      words.set(own, (i * PARAMS_ALIGNMENT_BYTES) / 4);
    }
    device.queue.writeBuffer(buffer, 0, words);
    this.pipelines.push(...(await Promise.all(compiled)));
    for (const name in networks) this.networks[name] = new Program(this, networks[name]);
  }

  #compile({ shader, entry_point, label, bindings }) {
    const { handle } = this.device, visibility = GPUShaderStage.COMPUTE;
    const entries = bindings.map((type, binding) => ({ binding, visibility, buffer: { type } }));
    const group = handle.createBindGroupLayout({ entries: entries.filter(({ buffer }) => buffer.type) });
    const layout = handle.createPipelineLayout({ bindGroupLayouts: [group] });
    const compute = { module: this.modules[shader], entryPoint: entry_point };
    return handle.createComputePipelineAsync({ label, layout, compute }).catch(({ message }) => {
      throw new DeviceError(`${label}: the GPU's compiler refused it (${message}); please report it`);
    });
  }

  /** Makes the weights of a shard, whose bytes are as the model's file has them. */
  async prepare({ words, batches }, shard, bytes) {
    for (const { uploads, dispatches } of batches.filter((batch) => batch.shard === shard)) {
      for (const [offset, size, at] of uploads)
        this.device.queue.writeBuffer(this.buffers[words], at, bytes, offset, size);
      await this.submit(dispatches.map(toCall));
    }
  }

  /** Submits calls, in order. */
  async submit(calls) {
    const encoder = this.device.handle.createCommandEncoder(), pass = encoder.beginComputePass();
    for (const call of calls) {
      pass.setPipeline(this.pipelines[call.pipeline]);
      pass.setBindGroup(0, (call.group ??= this.#bind(call)));
      pass.dispatchWorkgroups(...call.workgroups);
    }
    pass.end();
    await this.device.submit(encoder);
  }

  #bind({ pipeline, params, bindings, label }) {
    const resources = bindings.map(([index, offset, size]) => ({ buffer: this.buffers[index], offset, size }));
    const entries = [this.params[params], ...resources].map((resource, binding) => ({ binding, resource }));
    const layout = this.pipelines[pipeline].getBindGroupLayout(0);
    return this.device.handle.createBindGroup({ label, layout, entries: entries.filter(({ resource }) => resource) });
  }
}

const toCall = ([pipeline, params, workgroups, bindings, label]) => ({ pipeline, params, workgroups, bindings, label });

/** One network, ready to run. */
class Program {
  timesMs = []; // of the calls, once they are known
  numNext = 1; // calls of the next piece as long as they are not

  constructor(programs, { inputs, outputs, tables, once, dispatches }) {
    Object.assign(this, { programs, tables, once, tensors: { ...inputs, ...outputs }, calls: dispatches.map(toCall) });
  }

  /**
   * Submits every call in pieces; with `again` without those of `once`, whose inputs are as before. The first run waits
   * for each piece, which starts with one call and doubles while it is quick, and so learns how long the calls take.
   */
  async run({ again = false, signal } = {}) {
    const { calls, timesMs, programs } = this;
    for (let start = again ? this.once : 0, end; start < calls.length; start = end) {
      signal?.throwIfAborted();
      const isKnown = start < timesMs.length, begun = performance.now();
      end = isKnown ? this.#endOfPiece(start) : Math.min(start + this.numNext, calls.length);
      await programs.submit(calls.slice(start, end));
      if (isKnown) continue;
      await programs.device.wait();
      const ms = performance.now() - begun;
      while (timesMs.length < end) timesMs.push(ms / (end - start));
      if (ms < PIECE_MS / 8) this.numNext = Math.min(2 * this.numNext, PIECE_CALLS);
      else if (ms > PIECE_MS) this.numNext = Math.ceil(this.numNext / 2);
    }
  }

  #endOfPiece(start) {
    let end = start, ms = 0;
    do ms += this.timesMs[end++];
    while (end < this.timesMs.length && end - start < PIECE_CALLS && ms + this.timesMs[end] <= PIECE_MS);
    return end;
  }

  buffer(name) {
    return this.programs.buffers[this.tensors[name].buffer];
  }

  /** Fills an input with numbers before the next run. */
  write(name, values) {
    const { shape, dtype, channels } = this.tensors[name], width = shape.at(-1);
    const padded = arrayOf(dtype, Math.ceil(((values.length / channels) * width) / 2) * 2); // whole words
    values.forEach((value, i) => (padded[Math.floor(i / channels) * width + (i % channels)] = value));
    this.programs.device.queue.writeBuffer(this.buffer(name), 0, padded);
  }

  /** Waits for the runs so far, and reads an input or output. */
  async read(name) {
    const { device } = this.programs, { shape, dtype, channels } = this.tensors[name], { size } = this.buffer(name);
    const [copy] = await device.allocate([size], GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST);
    const encoder = device.handle.createCommandEncoder();
    encoder.copyBufferToBuffer(this.buffer(name), 0, copy, 0, size);
    await device.submit(encoder);
    await copy.mapAsync(GPUMapMode.READ).catch(() => device.fail());
    const padded = arrayOf(dtype, copy.getMappedRange()), count = shape.reduce((product, length) => product * length);
    const width = shape.at(-1), values = new Float32Array((count / width) * channels);
    for (let i = 0, at = 0; i < count; i++) if (i % width < channels) values[at++] = padded[i];
    copy.destroy();
    return values;
  }
}

/** Of a length, or over bytes. */
export const arrayOf = (dtype, source) => new (dtype === "f16" ? Float16Array : Float32Array)(source);
