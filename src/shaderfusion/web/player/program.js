/** Recorded graphs: pipelines, buffers and bind groups, made once and replayed each step, as in graph/program.py. */
import { breath } from "./breath.js";
import { DeviceError } from "./errors.js";

const PARAMS_BYTES = 256; // from one call's to the next: WebGPU's largest minUniformBufferOffsetAlignment
const PIECE_MS = 50; // what one submission takes at most where it holds several calls
const PIECE_CALLS = 128; // and how many it holds: to encode it drops no frame

/** What the networks of a model share on a device, by the indices that its files of programs have. */
export class Programs {
  modules = [];
  pipelines = [];
  buffers = [];
  networks = {};

  constructor(device) {
    this.device = device;
  }

  /** Makes what a file records; its indices go on after those of the files before. */
  async add({ shaders, pipelines, buffers, params, networks }) {
    const { device } = this, compiled = [], { STORAGE, UNIFORM, COPY_SRC, COPY_DST } = GPUBufferUsage;
    for (const code of shaders) {
      this.modules.push(device.handle.createShaderModule({ code }));
      await breath();
    }
    for (const pipeline of pipelines) {
      compiled.push(this.#compile(pipeline));
      compiled.at(-1).catch(() => {}); // until all are awaited
      await breath();
    }
    this.buffers.push(...(await device.allocate(buffers, STORAGE | UNIFORM | COPY_SRC | COPY_DST)));
    for (const [i, words] of params.values.entries())
      device.queue.writeBuffer(this.buffers[params.buffer], i * PARAMS_BYTES, new Uint32Array(words));
    this.pipelines.push(...(await Promise.all(compiled)));
    for (const name in networks) this.networks[name] = new Program(this, networks[name]);
  }

  #compile({ shader, entry_point, label, entries }) {
    const { handle } = this.device, group = handle.createBindGroupLayout({ entries });
    const layout = handle.createPipelineLayout({ bindGroupLayouts: [group] });
    const compute = { module: this.modules[shader], entryPoint: entry_point };
    return handle.createComputePipelineAsync({ label, layout, compute }).catch(({ message }) => {
      throw new DeviceError(`${label}: the GPU's compiler refused it (${message}); please report it`);
    });
  }

  /** Makes the weights of a shard, whose bytes are as the model's file has them. */
  async prepare({ words, batches }, shard, bytes) {
    for (const { uploads, calls } of batches.filter((batch) => batch.shard === shard)) {
      for (const [offset, size, at] of uploads)
        this.device.queue.writeBuffer(this.buffers[words], at, bytes, offset, size);
      await this.submit(calls);
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

  #bind({ pipeline, bindings, label }) {
    const entries = bindings.flatMap((bound, binding) => {
      if (!bound) return []; // it has no parameters
      const [index, offset, size] = bound;
      return { binding, resource: { buffer: this.buffers[index], offset, size } };
    });
    const layout = this.pipelines[pipeline].getBindGroupLayout(0);
    return this.device.handle.createBindGroup({ label, layout, entries });
  }
}

/** One network, ready to run. */
class Program {
  timesMs = []; // of the calls that have run

  constructor(programs, network) {
    Object.assign(this, { programs, ...network }); // tensors, tables, once, calls
  }

  /**
   * Submits every call in pieces; with `again` without those of `once`, whose inputs are as before. The first run waits
   * for each piece, and so learns how long the calls take.
   */
  async run({ again = false, signal } = {}) {
    const { calls, timesMs, programs } = this;
    for (let start = again ? this.once : 0, end; start < calls.length; start = end) {
      signal?.throwIfAborted();
      const begun = performance.now();
      end = this.#endOfPiece(start);
      await programs.submit(calls.slice(start, end));
      if (end <= timesMs.length) continue;
      await programs.device.wait();
      const ms = (performance.now() - begun) / (end - start);
      while (timesMs.length < end) timesMs.push(ms);
    }
  }

  /** Calls that are new are taken to be as slow as the last one, and no more of them go at once than have run. */
  #endOfPiece(start) {
    const { timesMs, calls } = this, guess = Math.max(timesMs.at(-1) ?? 0, PIECE_MS / (timesMs.length + 1));
    const most = Math.min(start + PIECE_CALLS, calls.length);
    let end = start, ms = 0;
    do ms += timesMs[end++] ?? guess;
    while (end < most && ms + (timesMs[end] ?? guess) <= PIECE_MS);
    return end;
  }

  buffer(name) {
    return this.programs.buffers[this.tensors[name].buffer];
  }

  /** Fills an input with numbers before the next run. */
  write(name, values) {
    const { dtype, rows, width, channels } = this.tensors[name];
    const padded = arrayOf(dtype, Math.ceil((rows * width) / 2) * 2); // whole words
    values.forEach((value, i) => (padded[Math.floor(i / channels) * width + (i % channels)] = value));
    this.programs.device.queue.writeBuffer(this.buffer(name), 0, padded);
  }

  /** Waits for the runs so far, and reads an input or output. */
  async read(name) {
    const { dtype, rows, width, channels } = this.tensors[name], { size } = this.buffer(name);
    const { device } = this.programs;
    const [copy] = await device.allocate([size], GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST);
    const encoder = device.handle.createCommandEncoder();
    encoder.copyBufferToBuffer(this.buffer(name), 0, copy, 0, size);
    await device.submit(encoder);
    await copy.mapAsync(GPUMapMode.READ).catch(() => device.fail());
    const padded = arrayOf(dtype, copy.getMappedRange()), values = new Float32Array(rows * channels);
    for (let i = 0, at = 0; i < rows * width; i++) if (i % width < channels) values[at++] = padded[i];
    copy.destroy();
    return values;
  }
}

/** Of a length, or over bytes. */
export const arrayOf = (dtype, source) => new (dtype === "f16" ? Float16Array : Float32Array)(source);
