/** The paper's ablation on this device: an iteration of the denoiser with none of the five optimizations, then more. */
import { whyNot } from "./device.js";
import { DeviceError } from "./errors.js";

const ENOUGH_MS = 2000, MOST_RUNS = 20;

/** Rows {name, optimizations, ms}, with a median; `onProgress` is told {stage, step, numSteps} before each. */
export async function measureAblation(pipeline, { onProgress = () => {}, signal } = {}) {
  const { ablation, name } = pipeline.device.variant;
  const reason = whyNot(pipeline.device.adapter, { name: `the ablation in ${name}`, ...ablation });
  if (reason) throw new DeviceError(`this GPU cannot run it: ${reason}`);
  onProgress({ stage: "compile", step: 0, numSteps: 1 });
  if (!pipeline.ablationRows) {
    const recorded = JSON.parse(await (await pipeline.files.get(ablation.program, { signal })).text());
    await pipeline.programs.add(recorded);
    await pipeline.prepare(recorded, () => {}, signal);
    pipeline.ablationRows = recorded.rows;
  }
  const rows = [];
  for (const { name, optimizations, network } of pipeline.ablationRows) {
    onProgress({ stage: name, step: rows.length, numSteps: pipeline.ablationRows.length });
    rows.push({ name, optimizations, ms: await medianMs(pipeline, pipeline.programs.networks[network], signal) });
  }
  return rows;
}

async function medianMs({ device }, network, signal) {
  const times = [];
  await network.run({ signal });
  await device.wait();
  for (let total = 0; times.length < 3 || (total < ENOUGH_MS && times.length < MOST_RUNS); total += times.at(-1)) {
    const begun = performance.now();
    await network.run({ again: true, signal });
    await device.wait();
    times.push(performance.now() - begun);
  }
  return times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
}

/** The rows as text for an issue; `facts` are lines before them. */
export function toMarkdown(rows, facts) {
  const lines = rows.map(({ name, ms }) => `| ${name} | ${ms.toFixed(2)} | ${(rows[0].ms / ms).toFixed(2)} x |`);
  const head = ["| one iteration of the denoiser | median, ms | against the baseline |", "| --- | ---: | ---: |"];
  return [...facts.map((fact) => `- ${fact}`), "", ...head, ...lines].join("\n");
}
