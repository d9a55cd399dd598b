/** Previews by a linear map from latents to colours, fitted to a picture that the decoder has made of some latents. */

/** The rows of the map: C and one for the constant, 3 columns. `latents` (H, W, C), `image` a whole multiple of it. */
export function fitColours(latents, height, width, image) {
  const C = latents.length / (height * width), n = C + 1, scale = image.width / width;
  const rows = Array.from({ length: n }, () => new Float64Array(n + 3)); // normal equations
  const features = new Float64Array(n).fill(1);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < C; c++) features[c] = latents[(y * width + x) * C + c];
      const colour = meanColour(image, x * scale, y * scale, scale);
      for (let i = 0; i < n; i++) {
        for (let j = 0; j < n; j++) rows[i][j] += features[i] * features[j];
        for (let k = 0; k < 3; k++) rows[i][n + k] += features[i] * colour[k];
      }
    }
  }
  return solve(rows, n);
}

function meanColour({ data, width }, left, top, scale) {
  const sum = [0, 0, 0];
  for (let y = top; y < top + scale; y++)
    for (let x = left; x < left + scale; x++) for (let k = 0; k < 3; k++) sum[k] += data[4 * (y * width + x) + k];
  return sum.map((value) => value / scale ** 2);
}

/** Gauss-Jordan elimination, with a little of the identity added so that there is always a solution. */
function solve(rows, n) {
  for (let i = 0; i < n; i++) rows[i][i] += 1e-3;
  for (let i = 0; i < n; i++) {
    rows[i] = rows[i].map((value) => value / rows[i][i]);
    for (let j = 0; j < n; j++) {
      const factor = rows[j][i];
      if (j !== i) rows[j] = rows[j].map((value, k) => value - factor * rows[i][k]);
    }
  }
  return rows.map((row) => Array.from(row.slice(n)));
}

/** The picture of latents (H, W, C), a pixel each. */
export function colourLatents(map, latents, height, width) {
  const C = map.length - 1, image = new ImageData(width, height);
  image.data.fill(255);
  for (let i = 0; i < height * width; i++)
    for (let k = 0; k < 3; k++) {
      let value = map[C][k];
      for (let c = 0; c < C; c++) value += map[c][k] * latents[i * C + c];
      image.data[4 * i + k] = value;
    }
  return image;
}
