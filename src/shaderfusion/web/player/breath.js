let last = 0;

/** Lets the browser draw a frame, now and then, in a long loop. */
export async function breath() {
  if (performance.now() - last < 8 || document.hidden) return; // timers of hidden pages are slow
  await new Promise((resolve) => setTimeout(resolve));
  last = performance.now();
}
