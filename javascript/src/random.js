/**
 * The random numbers of Python's runtime: `numpy.random.default_rng([seed, 0]).random(dtype=float32)`, so that a seed draws the same tokens.
 *
 * PCG64 (XSL-RR 128/64, O'Neill 2014) behind NumPy's SeedSequence (numpy/random/bit_generator.pyx).
 */
const MASK = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

export class Random {
  #state;
  #increment;
  #half = null;

  constructor(seed) {
    const [high, low, incrementHigh, incrementLow] = words64(pool([...words32(BigInt(seed)), 0]));
    this.#increment = ((((incrementHigh << 64n) | incrementLow) << 1n) | 1n) & MASK;
    this.#state = (this.#increment + ((high << 64n) | low)) & MASK;
    this.#step();
  }

  /** A float32 from 0 to under 1. */
  next() {
    return (this.#next32() >>> 8) / 2 ** 24;
  }

  #step() {
    this.#state = (this.#state * MULTIPLIER + this.#increment) & MASK;
  }

  #next32() {
    if (this.#half !== null) {
      const kept = this.#half;
      this.#half = null;
      return kept;
    }
    this.#step();
    const mixed = (this.#state >> 64n) ^ (this.#state & 0xffffffffffffffffn);
    const turn = this.#state >> 122n;
    const word = BigInt.asUintN(64, (mixed >> turn) | (mixed << (64n - turn)));
    this.#half = Number(word >> 32n);
    return Number(word & 0xffffffffn);
  }
}

/** A seed where the caller gives none. */
export const anySeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

function words32(number) {
  const words = [];
  do {
    words.push(Number(number & 0xffffffffn));
    number >>= 32n;
  } while (number);
  return words;
}

/** SeedSequence's pool of four words, mixed from the words of the entropy. */
function pool(entropy) {
  let hash = 0x43b0d7e5;
  const hashed = (value) => {
    value = (value ^ hash) >>> 0;
    hash = Math.imul(hash, 0x931e8875) >>> 0;
    value = Math.imul(value, hash) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  };
  const mixed = (x, y) => {
    const value = (Math.imul(x, 0xca01f9dd) - Math.imul(y, 0x4973f715)) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  };
  const words = Array.from({ length: 4 }, (_, i) => hashed(entropy[i] ?? 0));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (from !== to) words[to] = mixed(words[to], hashed(words[from]));
  }
  for (const word of entropy.slice(4)) for (let to = 0; to < 4; to++) words[to] = mixed(words[to], hashed(word));
  return words;
}

/** Four words of 64 bits for a generator, from the pool. */
function words64(words) {
  let hash = 0x8b51f9dd;
  const found = Array.from({ length: 8 }, (_, i) => {
    let value = (words[i % 4] ^ hash) >>> 0;
    hash = Math.imul(hash, 0x58f38ded) >>> 0;
    value = Math.imul(value, hash) >>> 0;
    return BigInt((value ^ (value >>> 16)) >>> 0);
  });
  return [0, 2, 4, 6].map((i) => found[i] | (found[i + 1] << 32n));
}
