// The latents of the samples of a seed, as docs/noise.md specifies them: normals from the words of
// Philox4x32-10 (Salmon et al., 2011). The server reads Φ⁻¹ from a table, this page computes it; the
// two differ by less than 1e-6, so that a picture decoded from these latents is that of the sample.

const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57];
const KEY_STEPS = [0x9e3779b9, 0xbb67ae85];
const ROUNDS = 10;

// The latents of sample `row` of a seed.
export function latentsOf(seed, row, size) {
  const words = [];
  for (let block = 0; words.length < size; block++) words.push(...philox([block, 0, row, 0], seed));
  return words.slice(0, size).map(normal);
}

function philox(counter, seed) {
  let [a, b, c, d] = counter;
  let low = (seed % 2 ** 32) >>> 0;
  let high = Math.floor(seed / 2 ** 32) >>> 0;
  for (let round = 0; round < ROUNDS; round++) {
    const [p, q] = [product(a, MULTIPLIERS[0]), product(c, MULTIPLIERS[1])];
    [a, b, c, d] = [(q[0] ^ b ^ low) >>> 0, q[1], (p[0] ^ d ^ high) >>> 0, p[1]];
    low = (low + KEY_STEPS[0]) >>> 0;
    high = (high + KEY_STEPS[1]) >>> 0;
  }
  return [a, b, c, d];
}

// The high and the low 32 bits of a product of two words.
function product(a, b) {
  const full = BigInt(a) * BigInt(b);
  return [Number(full >> 32n), Number(full & 0xffffffffn)];
}

// A word stands for a probability below one half, and its lowest bit for the sign.
function normal(word) {
  const size = -inverseNormal((word | 1) >>> 0, 33);
  return word & 1 ? -size : size;
}

// Φ⁻¹ of numerator / 2^bits below one half: Acklam's rational approximation, and one step of Halley.
function inverseNormal(numerator, bits) {
  const p = numerator / 2 ** bits;
  const x = p < 0.02425 ? tail(Math.sqrt(-2 * Math.log(p))) : centre(p - 0.5);
  const error = (below(x) - p) * Math.sqrt(2 * Math.PI) * Math.exp((x * x) / 2);
  return x - error / (1 + (x * error) / 2);
}

const poly = (x, coefficients) => coefficients.reduce((sum, each) => sum * x + each, 0);

const tail = q =>
  poly(
    q,
    [
      -7.784894002430293e-3, -0.3223964580411365, -2.400758277161838, -2.549732539343734, 4.374664141464968,
      2.938163982698783,
    ],
  ) / poly(q, [7.784695709041462e-3, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1]);

const centre = q =>
  (poly(
    q * q,
    [
      -39.69683028665376, 220.9460984245205, -275.9285104469687, 138.357751867269, -30.66479806614716,
      2.506628277459239,
    ],
  ) *
    q) /
  poly(
    q * q,
    [-54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572, 1],
  );

// Φ(x) for x below 0, by the continued fraction of Mills' ratio, or by a series near 0.
function below(x) {
  const density = Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);
  if (x > -3) {
    let term = x;
    let sum = x;
    for (let n = 3; n < 120; n += 2) {
      term *= (x * x) / n;
      sum += term;
    }
    return 0.5 + density * sum;
  }
  let fraction = -x;
  for (let n = 60; n > 0; n--) fraction = -x + n / fraction;
  return density / fraction;
}
