/** Recorded graphs as data -> pipelines, buffers and bind groups, replayed each step. */
import { round } from "./schedulers.js";

const PARAMS_ALIGNMENT_BYTES = 256; // WebGPU's largest minUniformBufferOffsetAlignment
const PIECE_MS = 50; // what one submission takes at most where it holds several calls
const PIECE_CALLS = 128; // and how many it holds, so that encoding it drops no frame

/** What all networks of a model share on a device: pipelines, buffers and parameters, by the indices of its files. */
export class Programs {
  networks = {};
  #modules = [];
  pipelines = [];
  buffers = [];
  params = [];

  constructor(device) {
    this.device = device;
  }

  /** Compiles the shaders of a file, and makes its buffers. Its indices go on after those of the files before. */
  async add(file) {
    const { handle } = this.device, { STORAGE, COPY_SRC, COPY_DST, UNIFORM } = GPUBufferUsage;
    this.#modules.push(...file.shaders.map((code) => handle.createShaderModule({ code })));
    const compiled = Promise.all(file.pipelines.map((pipeline) => this.#compile(pipeline)));
    compiled.catch(() => {}); // told below
    this.buffers.push(...(await this.device.allocate(file.buffers, STORAGE | COPY_SRC | COPY_DST)));
    const words = new Uint32Array((file.params.length * PARAMS_ALIGNMENT_BYTES) / 4 || 4);
    const [uniforms] = await this.device.allocate([words.byteLength], UNIFORM | COPY_DST);
    for (const [i, row] of file.params.entries()) {
      words.set(row, (i * PARAMS_ALIGNMENT_BYTES) / 4);
      this.params.push({ buffer: uniforms, offset: i * PARAMS_ALIGNMENT_BYTES, size: 4 * row.length });
    }
    this.device.queue.writeBuffer(uniforms, 0, words);
    this.pipelines.push(...(await compiled));
    for (const [name, network] of Object.entries(file.networks)) this.networks[name] = new Program(this, name, network);
  }

  #compile({ shader, entry_point, label, bindings }) {
    const { handle } = this.device;
    const entries = bindings.flatMap((type, binding) =>
      type ? { binding, visibility: GPUShaderStage.COMPUTE, buffer: { type } } : []);
    const layout = handle.createPipelineLayout({ bindGroupLayouts: [handle.createBindGroupLayout({ entries })] });
    const compute = { module: this.#modules[shader], entryPoint: entry_point };
    return handle.createComputePipelineAsync({ label, layout, compute });
  }

  /** Turns the bytes of a shard, as the model's file has them, into those weights that it holds. */
  async prepare({ words, batches }, shard, bytes) {
    for (const { uploads, dispatches } of batches.filter((batch) => batch.shard === shard)) {
      for (const [offset, size, at] of uploads) this.device.queue.writeBuffer(this.buffers[words], at, bytes, offset, size);
      await this.submit(dispatches.map(dispatchOf));
    }
    await this.device.wait();
  }

  /** Submits calls, in order. */
  async submit(calls) {
    const encoder = this.device.handle.createCommandEncoder(), pass = encoder.beginComputePass();
    for (const call of calls) {
      const pipeline = this.pipelines[call.pipeline];
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, (call.bindGroup ??= this.#bind(pipeline, call)));
      pass.dispatchWorkgroups(...call.workgroups);
    }
    pass.end();
    await this.device.submit(encoder);
  }

  #bind(pipeline, { params, bindings, label }) {
    const entries = bindings.map(([index, offset, size], i) =>
      ({ binding: i + 1, resource: { buffer: this.buffers[index], offset, size } }));
    if (params >= 0) entries.push({ binding: 0, resource: this.params[params] });
    return this.device.handle.createBindGroup({ label, layout: pipeline.getBindGroupLayout(0), entries });
  }
}

const dispatchOf = ([pipeline, params, workgroups, bindings, label]) => ({ pipeline, params, workgroups, bindings, label });

/** One network, ready to run. */
class Program {
  timesMs = []; // by call, of the first run
  count = 1; // of calls in the next piece, as long as their times are not known

  constructor(programs, name, { inputs, outputs, tables, once, dispatches }) {
    Object.assign(this, { programs, name, tables, once, tensors: { ...inputs, ...outputs } });
    this.calls = dispatches.map(dispatchOf);
  }

  bytes(name) {
    const { shape, dtype } = this.tensors[name];
    return shape.reduce((product, length) => product * length, dtype === "f16" ? 2 : 4);
  }

  buffer(name) {
    return this.programs.buffers[this.tensors[name].buffer];
  }

  /** Fills an input with numbers, without padding, before the next run. */
  write(name, values) {
    this.programs.device.queue.writeBuffer(this.buffer(name), 0, encode(values, this.tensors[name]));
  }

  /** Waits for the runs so far, and reads an input or output: Float32Array, without padding. */
  async read(name) {
    const { device } = this.programs, source = this.buffer(name), tensor = this.tensors[name];
    const [target] = await device.allocate([source.size], GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST);
    const encoder = device.handle.createCommandEncoder();
    encoder.copyBufferToBuffer(source, 0, target, 0, source.size);
    await device.submit(encoder);
    try {
      await target.mapAsync(GPUMapMode.READ);
      return decode(target.getMappedRange(), tensor);
    } catch (error) {
      device.check();
      throw error;
    } finally {
      target.destroy();
    }
  }

  /**
   * Submits every call, in order, in pieces; with `again` those of `once` are left out, whose inputs are as before. The
   * first run waits for each piece, and so learns how long the calls take.
   */
  async run({ again = false, signal } = {}) {
    const { calls, timesMs, programs } = this;
    for (let first = again ? this.once : 0, end; first < calls.length; first = end) {
      signal?.throwIfAborted();
      const isKnown = first < timesMs.length;
      end = isKnown ? this.#endOfPiece(first) : Math.min(first + this.count, calls.length);
      const started = performance.now();
      await programs.submit(calls.slice(first, end));
      if (isKnown) continue;
      await programs.device.wait();
      const ms = performance.now() - started;
      while (timesMs.length < end) timesMs.push(ms / (end - first));
      // The next calls may each take several times as long, where a network changes its resolution.
      if (ms < PIECE_MS / 8) this.count = Math.min(2 * this.count, PIECE_CALLS);
      else if (ms > PIECE_MS) this.count = Math.ceil(this.count / 2);
    }
  }

  #endOfPiece(first) {
    let end = first, ms = 0;
    do ms += this.timesMs[end++];
    while (end < this.timesMs.length && end - first < PIECE_CALLS && ms + this.timesMs[end] <= PIECE_MS);
    return end;
  }
}

// ---------------------------------------------------------------------------------------- numbers of a tensor

/** Numbers as a tensor's elements, with its padding. */
function encode(values, { shape, dtype, channels }) {
  const row = shape.at(-1), size = (values.length / channels) * row;
  const elements = dtype === "f16" ? new Uint16Array(size + (size % 2)) : new Float32Array(size);
  const of = dtype === "f16" ? toF16 : (value) => value;
  for (let i = 0; i < values.length; i++) elements[Math.floor(i / channels) * row + (i % channels)] = of(values[i]);
  return elements;
}

/** The numbers in a tensor's bytes, without its padding. */
export function decode(bytes, { shape, dtype, channels = shape.at(-1) }) {
  const elements = dtype === "f16" ? Float32Array.from(new Uint16Array(bytes), fromF16) : new Float32Array(bytes).slice();
  const row = shape.at(-1), size = shape.reduce((product, length) => product * length, 1);
  return elements.subarray(0, size).filter((_, i) => i % row < channels);
}

/** The bits of the f16 that is nearest, of two the even one. */
function toF16(x) {
  const size = Math.abs(x), sign = x < 0 ? 0x8000 : 0;
  if (!(size < 65520)) return sign | (size > 0 ? 0x7c00 : 0x7e00);
  const exponent = Math.max(-14, Math.floor(Math.log2(size)));
  return sign | ((exponent + 14) * 1024 + round(size * 2 ** (10 - exponent)));
}

function fromF16(bits) {
  const exponent = (bits >> 10) & 31, mantissa = bits & 1023, sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + mantissa) : 2 ** -24 * mantissa);
}
