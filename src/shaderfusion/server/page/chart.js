/** The ablation's rows as bars. */

const WIDEST = 640;
const ROW = 44;
const BAR = 14;

function draw(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const milliseconds = (ms) => `${ms.toLocaleString("en", { maximumSignificantDigits: 3 })} ms`;

/** An <svg> of rows {name, ms, against_none_percent}: a bar each, with its time and how that compares with none. */
export function chart(rows, room) {
  const width = Math.min(WIDEST, room);
  const longest = Math.max(...rows.map(({ ms }) => ms));
  const said = rows.map((row) => `${row.name}: ${milliseconds(row.ms)}${compared(row)}`).join("; ");
  const bars = rows.flatMap((row, index) => {
    const y = index * ROW;
    const bar = { x: 0, y: y + 20, height: BAR, rx: 4 };
    const change = draw("tspan", { class: "less" }, compared(row));
    return [
      draw("text", { x: 0, y: y + 14 }, row.name),
      draw("text", { x: width, y: y + 14, "text-anchor": "end" }, milliseconds(row.ms), change),
      draw("rect", { ...bar, class: "track", width }),
      draw("rect", { ...bar, class: "bar", width: Math.max(2, (width * row.ms) / longest) }),
    ];
  });
  return draw("svg", { width, viewBox: `0 0 ${width} ${rows.length * ROW}`, role: "img", "aria-label": said }, ...bars);
}

function compared({ against_none_percent: percent }) {
  if (!percent) return "";
  return ` (${percent > 0 ? "+" : "−"}${Math.abs(percent).toFixed(0)} %)`;
}
