/**
 * Rules for the next token of a row: the model's own and the caller's, in the order of transformers' logits processors.
 *
 * `suppressed` ids may never come; `banned` may not come now; of `forced` one has to come, whatever else is said; `history` is what a
 * repetition penalty looks at, null without one.
 */
export class Rules {
  constructor(config, search) {
    const end = ends(config);
    const words = config.bad_words ?? [];
    const always = new Set([...list(config.suppressed), ...words.filter((word) => word.length === 1 && !end.includes(word[0])).flat()]);
    const usable = (ids) => {
      const left = ids.filter((i) => !list(config.suppressed).includes(i));
      return (left.length ? left : ids).sort((a, b) => a - b);
    };
    this.ends = end;
    this.renormalize = Boolean(config.renormalize);
    this.penalty = search.repetitionPenalty;
    this.suppressed = sorted(always);
    this.#early = sorted(new Set([...always, ...end]));
    this.#first = usable(list(search.forcedBosId ?? config.forced_bos_id));
    this.#last = usable(list(config.forced_eos_id));
    this.#begin = list(config.begin_suppressed);
    this.#words = words.filter((word) => word.length > 1);
    this.#ngram = search.noRepeatNgram;
    this.#sourceNgram = config.encoder_no_repeat_ngram ?? 0;
    this.#search = search;
  }

  #early;
  #first;
  #last;
  #begin;
  #words;
  #ngram;
  #sourceNgram;
  #search;

  /** What holds behind `tokens`. row: { prefix, source, limit } — ids before the answer, those of its source, the most new tokens. */
  at({ prefix, source, limit }, tokens) {
    const search = this.#search;
    const early = tokens.length < Math.max(search.minNewTokens, search.minTotalTokens - prefix.length);
    const banned = new Set(early ? search.stopTokenIds : []);
    const startsAlone = this.#first.length && prefix.length === 1; // only a decoder that starts from one id has its second forced
    if (tokens.length === (startsAlone ? 1 : 0)) this.#begin.forEach((i) => banned.add(i));
    const seen = [...prefix, ...tokens];
    for (const word of this.#words) {
      const start = seen.length + 1 - word.length;
      if (start >= 0 && word.slice(0, -1).every((id, i) => id === seen[start + i])) banned.add(word.at(-1));
    }
    for (const id of following(seen, seen, this.#ngram)) banned.add(id);
    for (const id of following(source ?? prefix, seen, this.#sourceNgram)) banned.add(id);
    let forced = startsAlone && !tokens.length ? this.#first : [];
    if (this.#last.length && tokens.length === limit - 1) forced = this.#last;
    const suppressed = early ? this.#early : this.suppressed;
    return { suppressed, banned: sorted(banned), forced, history: this.penalty === 1 ? null : seen };
  }
}

/** Ids that follow in `text` on the last `size - 1` of `ids`. */
function following(text, ids, size) {
  if (!size || text.length < size || ids.length + 1 < size) return [];
  const tail = ids.slice(ids.length + 1 - size);
  return text.filter((_, i) => i >= size - 1 && tail.every((id, j) => id === text[i - size + 1 + j]));
}

export const ends = (config) => list(config.eos_id);
const list = (value) => (value == null ? [] : [value].flat());
const sorted = (ids) => [...ids].sort((a, b) => a - b);
