/** Options of `generate` and `stream`: checked, then filled up with what the model says itself. */
import { UsageError } from "./errors.js";

const whole = (least) => [(value) => Number.isSafeInteger(value) && value >= least, `a whole number from ${least}`];
const range = (low, high) => [(value) => typeof value === "number" && value >= low && value <= high, `a number from ${low} to ${high}`];
const text = [(value) => typeof value === "string", "a text"];
const [SMALLEST, LARGEST] = [2 ** -126, (2 - 2 ** -23) * 2 ** 127]; // of normal float32, the search graphs' type
const above = ([check, expected]) => [(value) => value === 0 || check(value), expected];

const OPTIONS = {
  maxNewTokens: whole(1),
  minNewTokens: whole(0),
  temperature: above(range(SMALLEST, LARGEST)),
  topK: whole(0),
  topP: range(SMALLEST, 1),
  repetitionPenalty: range(SMALLEST, LARGEST),
  noRepeatNgram: whole(0),
  seed: [(value) => (typeof value === "bigint" && value >= 0n) || (Number.isSafeInteger(value) && value >= 0), "a whole number from 0"],
  stop: [(value) => [value].flat().every((one) => typeof one === "string" && one), "a text or a list of texts"],
  stopTokenIds: [(value) => Array.isArray(value) && value.every((one) => Number.isSafeInteger(one) && one >= 0), "a list of token ids"],
  srcLang: text,
  tgtLang: text,
  signal: [(value) => typeof value?.throwIfAborted === "function", "an AbortSignal"],
};

/** UsageError for an option that is none, or has no such value. null and undefined leave an option to the model. */
export function check(options, known = OPTIONS, where = "options") {
  for (const [name, value] of Object.entries(options)) {
    if (!(name in known)) throw new UsageError(`${where}: ${name} is not known, expected some of ${Object.keys(known).join(", ")}`);
    const [allows, expected] = known[name];
    if (value != null && !allows(value)) throw new UsageError(`${name} is ${String(value).slice(0, 60)}, expected ${expected}`);
  }
}

/** The search for a model's `generation` section: the caller's options, then the model's own. */
export function searchOf(config, options) {
  check(options);
  const { maxNewTokens, minNewTokens } = options;
  if (maxNewTokens != null && minNewTokens > maxNewTokens) {
    throw new UsageError(`minNewTokens is ${minNewTokens}, expected at most maxNewTokens (${maxNewTokens})`);
  }
  const temperature = options.temperature ?? config.temperature ?? null;
  const topK = options.topK ?? config.top_k ?? 0;
  const topP = options.topP ?? config.top_p ?? null;
  const search = {
    maxNewTokens,
    minNewTokens: minNewTokens ?? config.min_new_tokens ?? 0,
    minTotalTokens: minNewTokens == null ? (config.min_total_tokens ?? 0) : 0,
    sampling: (temperature !== null || topK > 0 || topP !== null) && temperature !== 0,
    temperature: temperature ?? 1,
    topK,
    topP: topP ?? 1,
    repetitionPenalty: options.repetitionPenalty ?? config.repetition_penalty ?? 1,
    noRepeatNgram: options.noRepeatNgram ?? config.no_repeat_ngram ?? 0,
    seed: options.seed,
    stop: [options.stop ?? []].flat(),
    stopTokenIds: options.stopTokenIds ?? [],
    signal: options.signal,
  };
  const wrong = search.stopTokenIds.find((id) => id >= config.vocab_size);
  if (wrong !== undefined) throw new UsageError(`stopTokenIds holds ${wrong}, expected ids below ${config.vocab_size}, the size of the vocabulary`);
  return { ...search, ...languages(config, options) };
}

/** The ids around a source and at the beginning of an answer, of a model with several languages. */
function languages(config, { srcLang, tgtLang }) {
  const known = config.languages;
  const id = (option, code) => {
    if (!known) throw new UsageError(`${option} is ${code}, but this bundle names no languages; leave it out`);
    if (!(code in known.ids)) throw new UsageError(`${option} is ${code}, this model has ${Object.keys(known.ids).join(", ").slice(0, 200)}`);
    return known.ids[code];
  };
  const source = srcLang == null ? null : id("srcLang", srcLang);
  const target = tgtLang == null ? null : id("tgtLang", tgtLang);
  const filled = (ids) => ids.map((one) => one ?? source);
  return {
    around: source === null ? null : [filled(known.before), filled(known.after)],
    forcedBosId: target !== null && known.target === "forced" ? target : null,
    start: target !== null && known.target === "start" ? target : (config.decoder_start_id ?? 0),
  };
}
