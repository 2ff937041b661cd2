/** Greedy decoding and sampling of one answer, a token at a time. */
import { State } from "./engine.js";
import { OnnxportError, TextError, UsageError } from "./errors.js";
import { searchOf } from "./options.js";
import { Random, anySeed } from "./random.js";
import { Rules } from "./rules.js";
import { TextStream } from "./tokenizer.js";

const DEFAULT_NEW_TOKENS = 128;
const LEAST_LOG_SHARE = Math.log(0.1); // of the distribution; what is left below it is too inexact to renormalize with

// Between two steps others have their turn: a page is painted, a call is cancelled.
const pause = globalThis.setImmediate
  ? () => new Promise((done) => setImmediate(done))
  : () => globalThis.scheduler?.yield?.() ?? new Promise((done) => setTimeout(done));

/** Pieces of an answer's text, for `for await`; afterwards `result` is the whole answer. */
export class Stream {
  #pieces;

  constructor(generator, input, options) {
    this.result = null;
    this.#pieces = this.#read(generator, input, options);
  }

  [Symbol.asyncIterator]() {
    return this.#pieces;
  }

  async *#read(generator, input, options) {
    const answer = generator.answer(input, options, true);
    for await (const piece of answer) {
      if (typeof piece === "string") yield piece;
      else this.result = piece;
    }
  }
}

export class Generator {
  /** engine: of the graphs. source, target: tokenizers, or undefined. */
  constructor(engine, source, target) {
    [this.engine, this.source, this.target] = [engine, source, target];
  }

  async generate(input, options) {
    let result;
    for await (const piece of this.answer(input, options, false)) result = piece;
    return result;
  }

  /** Pieces of text, if they are streamed, then the result: { text, tokens, tokenLogprobs, score, finishReason }. */
  async *answer(input, options, streaming) {
    const { engine, target } = this;
    const search = searchOf(engine.config, options);
    if (!target && (streaming || search.stop.length)) throw new UsageError("the bundle has no tokenizer for its answers; use generate without stop");
    const row = this.#row(input, options, search);
    if (!row) return yield { text: target ? "" : null, tokens: [], tokenLogprobs: [], score: 0, finishReason: "empty" };
    const rules = new Rules(engine.config, search);
    const random = search.sampling ? new Random(search.seed ?? anySeed()) : null;
    const text = target && (streaming || search.stop.length) ? new TextStream(target, search.stop) : null;
    const [tokens, tokenLogprobs] = [[], []];
    const final = new Set([...rules.ends, ...search.stopTokenIds]);
    let finishReason = "";
    search.signal?.throwIfAborted();
    const state = new State(engine, engine.seq2seq ? await engine.encode(row.source) : {}, row.prefix.length);
    try {
      for (let next = row.prefix; !finishReason; next = tokens.slice(-1)) {
        const rule = rules.at(row, tokens);
        const [token, logprob] = await this.#next(state, next, rules, rule, search, random?.next() ?? 0);
        tokens.push(token);
        tokenLogprobs.push(logprob);
        if (final.has(token)) finishReason = rules.ends.includes(token) ? "eos" : "stop";
        const piece = finishReason ? "" : (text?.push(token) ?? "");
        if (text?.stopped) finishReason = "stop";
        if (!finishReason && tokens.length >= row.limit) finishReason = "length";
        if (streaming && piece) yield piece;
        if (!finishReason) await pause();
        search.signal?.throwIfAborted();
      }
    } finally {
      state.release();
    }
    const rest = text?.finish();
    if (text?.stopped) finishReason = "stop";
    if (streaming && rest) yield rest;
    const score = tokenLogprobs.reduce((sum, one) => sum + one, 0);
    const end = tokens.length - final.has(tokens.at(-1));
    const found = tokens.slice(0, end);
    yield { text: text?.text ?? target?.decode(found) ?? null, tokens: found, tokenLogprobs: tokenLogprobs.slice(0, end), score, finishReason };
  }

  /** Run `ids` and choose what follows: [token, its log-probability]. */
  async #next(state, ids, rules, rule, search, uniform) {
    const { suppressed, banned, forced, history } = rule;
    const { int64 } = this.engine.make;
    const forbidden = new Set(suppressed);
    const changed = banned.length > 0 || history !== null;
    const run = await state.run(ids, suppressed, search.sampling || changed || forbidden.size > 0);
    if (forced.length) return [forced[Math.floor(uniform * forced.length)], rules.renormalize ? -Math.log(forced.length) : 0];
    let found;
    if (!changed && !(search.sampling && forbidden.size)) {
      const kept = run.kept.data[0];
      found = search.sampling ? await this.#draw(run.logits, search, uniform) : { token: run.token.data[0], logprob: run.logprob.data[0] };
      const sure = search.sampling || !(forbidden.has(Number(found.token)) || (rules.renormalize && kept < LEAST_LOG_SHARE));
      if (sure) return checked(found.token, found.logprob - (rules.renormalize && !search.sampling && forbidden.size ? kept : 0));
    }
    const { processed, kept } = await this.#processed(run.logits, rules, rule);
    if (search.sampling) found = await this.#draw(processed, search, uniform);
    else {
      const best = await this.engine.search("best", { logits: processed, candidates: int64([1]), suppressed: int64([]) });
      found = { token: best.token.data[0], logprob: best.logprob.data[0] };
    }
    return checked(found.token, found.logprob + (rules.renormalize ? 0 : kept.data[0]));
  }

  /** Logits with the rules of a step written into them, and the log of the share that they leave. */
  #processed(logits, rules, { suppressed, banned, history }) {
    const { int64, float } = this.engine.make;
    return this.engine.search("process", {
      logits,
      history: int64(history ?? [0], [1, history?.length ?? 1]),
      penalty: float([history ? rules.penalty : 1], []),
      suppressed: int64(suppressed),
      banned: int64(banned.flatMap((id) => [0, id]), [banned.length, 2]),
      normalize: float([0], []),
    });
  }

  async #draw(logits, { temperature, topK, topP }, uniform) {
    const { int64, float } = this.engine.make;
    const feeds = { logits, temperature: float([temperature], []), uniform: float([uniform]) };
    const filtered = topK > 0 || topP < 1;
    const most = this.engine.config.vocab_size;
    if (filtered) Object.assign(feeds, { top_k: int64([Math.min(topK || most, most)]), top_p: float([topP], []) });
    const { token, logprob } = await this.engine.search(filtered ? "sample" : "sample_full", feeds);
    return { token: token.data[0], logprob: logprob.data[0] };
  }

  /** What an input becomes: { source, prefix, limit }; null for an empty one. */
  #row(input, options, search) {
    const { config, seq2seq } = this.engine;
    const vocabulary = (seq2seq && config.source_vocab_size) || config.vocab_size;
    let ids = typeof input === "string" && input ? this.#read(input, search) : [...input];
    const wrong = ids.find((id) => !Number.isSafeInteger(id) || id < 0 || id >= vocabulary);
    if (wrong !== undefined) throw new TextError(`token id ${String(wrong)} is outside the vocabulary of ${vocabulary}; ids go from 0 to ${vocabulary - 1}`);
    if (!ids.length) return null;
    const prefix = seq2seq ? [search.start] : ids;
    return { source: seq2seq ? ids : null, prefix, limit: limitOf(config, ids.length, prefix.length, options, search) };
  }

  #read(text, { around }) {
    if (!this.source) throw new TextError("the input is text, but the bundle has no tokenizer; give token ids");
    const { ids } = this.source.read(text, !around);
    return around ? [...around[0], ...ids, ...around[1]] : ids;
  }
}

/** The most new tokens: the caller's limit or the model's, within the model's positions. */
function limitOf(config, source, begun, { maxNewTokens, minNewTokens }, search) {
  const bound = config.kind === "seq2seq" ? (config.max_source_length ?? config.max_length ?? Infinity) : Infinity;
  const most = config.max_length ?? Infinity;
  const total = config.max_total_tokens;
  if (source > bound) throw new TextError(`the input has ${source} tokens, the model takes at most ${bound}; shorten or split it`);
  if (begun > most) throw new TextError(`the input has ${begun} tokens, the model takes at most ${most}; shorten or split it`);
  let preferred = maxNewTokens ?? config.max_new_tokens;
  if (preferred == null && total != null) {
    if (begun >= total) throw new TextError(`the input has ${begun} tokens, and the model's own limit of prompt and answer is ${total}; give maxNewTokens`);
    preferred = total - begun;
  }
  const usual = Math.max(DEFAULT_NEW_TOKENS, search.minNewTokens, search.minTotalTokens - begun);
  const limit = Math.min(preferred ?? usual, most - begun + 1);
  if (minNewTokens != null && limit < minNewTokens) throw new UsageError(`minNewTokens is ${minNewTokens}, but the input has room for ${limit} new tokens`);
  return limit;
}

function checked(token, logprob) {
  if (Number.isNaN(logprob)) {
    throw new OnnxportError("the scores of the next tokens are not finite: no token may come any more, or the model is at fault; loosen the rules, or use another precision");
  }
  return [Number(token), logprob];
}
