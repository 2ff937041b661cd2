/** A bundle's tokenizer, and text that grows as tokens arrive. */
import { Tokenizer } from "@huggingface/tokenizers";

import { BundleError, TextError } from "./errors.js";

// Marks in a converted tokenizer.json, which no text can match: tokens from the first on mean the unknown token, named behind the second.
const UNKNOWN_FROM = "\ufdd2";
const UNKNOWN_IS = "\ufdd4";
const BYTE = /^<0x[0-9A-Fa-f]{2}>$/;

export class TextTokenizer {
  #tokenizer;
  #end;
  #unknown;
  #special;
  #begun;

  /** json: the content of tokenizer.json. */
  constructor(json, where) {
    try {
      this.#tokenizer = new Tokenizer(json, {});
    } catch (error) {
      throw new BundleError(`${where}: @huggingface/tokenizers cannot use this tokenizer (${error.message}); give token ids`);
    }
    this.#end = this.#tokenizer.token_to_id(UNKNOWN_FROM) ?? Infinity;
    if (this.#end < Infinity) this.#unknown = this.#tokenizer.token_to_id(this.#tokenizer.id_to_token(this.#end + 1).slice(UNKNOWN_IS.length));
    this.#special = new Set((json.added_tokens ?? []).filter(({ special }) => special).map(({ id }) => id));
    this.#begun = beginnings(json.decoder);
  }

  /** Ids of a text, and its token types. TextError for what is no text. */
  read(text, special = true) {
    if (typeof text !== "string") throw new TextError(`input is ${text === null ? "null" : typeof text}, expected a text or a list of token ids`);
    if (!text.isWellFormed()) throw new TextError("text holds a lone surrogate, expected valid Unicode; decode it rightly");
    const found = this.#tokenizer.encode(text, { add_special_tokens: special, return_token_type_ids: true });
    return { ids: found.ids.map((id) => (id < this.#end ? id : this.#unknown)), types: found.token_type_ids };
  }

  /** Text of ids, without special tokens. */
  decode(ids) {
    return ids.length ? this.#tokenizer.decode(ids, { skip_special_tokens: true, clean_up_tokenization_spaces: false }) : "";
  }

  /** Whether text may still change behind a token: byte tokens join their neighbours. */
  isOpen(id) {
    const name = this.#tokenizer.id_to_token(id);
    return name === undefined || this.#special.has(id) || BYTE.test(name);
  }

  /** Whether the decoder may still rewrite the end of a text, as when it takes the space before a mark away. */
  mayShrink(text) {
    return this.#begun.some((start) => text.endsWith(start));
  }

  /** Whether the decoder rewrites whole texts, so that a part of the tokens does not always give a part of the text. */
  get rewrites() {
    return this.#begun.length > 0;
  }
}

/** How texts may begin that a decoder rewrites after it joined all tokens: `Replace` behind `Fuse`. */
function beginnings(decoder) {
  const steps = decoder?.decoders ?? [];
  const fused = steps.findIndex(({ type }) => type === "Fuse");
  const late = fused < 0 ? [] : steps.slice(fused).filter(({ type }) => type === "Replace");
  return late.flatMap(({ pattern }) => Array.from(pattern.String ?? "", (_, i) => pattern.String.slice(0, i)).filter(Boolean));
}

/** Text of a growing row of tokens: its pieces are only what later tokens cannot change, and join to the whole text. */
export class TextStream {
  #tokenizer;
  #stops;
  #ids = [];
  #start = 0; // decoding begins here, a few tokens back, so that spaces between tokens come out right
  #done = 0; // tokens before this are in #text
  #text = "";
  #emitted = 0;
  stopped = false;

  /** stops: texts that end it; the first that comes is cut off. */
  constructor(tokenizer, stops = []) {
    [this.#tokenizer, this.#stops] = [tokenizer, stops];
  }

  /** What was emitted so far. */
  get text() {
    return this.#text.slice(0, this.#emitted);
  }

  /** Add a token; the piece of text that is certain now, perhaps "". Sets `stopped` when a stop came. */
  push(id) {
    this.#ids.push(id);
    if (!this.#tokenizer.isOpen(id)) this.#settle(false);
    return this.#emit(false);
  }

  /** The piece that was held back; no more tokens may follow. */
  finish() {
    if (!this.stopped) this.#settle(true);
    return this.#emit(true);
  }

  #settle(final) {
    const known = this.#tokenizer.decode(this.#ids.slice(this.#start, this.#done));
    const longer = this.#tokenizer.decode(this.#ids.slice(this.#start));
    if (!final && (longer.endsWith("\ufffd") || !longer.startsWith(known) || this.#tokenizer.mayShrink(longer))) return;
    if (longer.length <= known.length && !final) return;
    let shared = 0;
    while (shared < known.length && known[shared] === longer[shared]) shared++;
    this.#text += longer.slice(shared);
    [this.#start, this.#done] = [this.#tokenizer.rewrites ? 0 : this.#done, this.#ids.length];
  }

  #emit(final) {
    if (this.stopped) return "";
    let end = this.#text.length;
    const longest = Math.max(0, ...this.#stops.map(({ length }) => length));
    const found = this.#stops.map((stop) => this.#text.indexOf(stop, Math.max(0, this.#emitted - longest))).filter((i) => i >= 0);
    if (found.length) {
      end = Math.max(Math.min(...found), this.#emitted);
      this.#text = this.#text.slice(0, end);
      this.stopped = true;
    } else if (!final) {
      end -= this.#held(longest);
    }
    const piece = this.#text.slice(this.#emitted, end);
    this.#emitted = Math.max(this.#emitted, end);
    return piece;
  }

  /** Length of the longest end of the text that begins a stop. */
  #held(longest) {
    for (let size = Math.min(this.#text.length, longest - 1); size > 0; size--) {
      if (this.#stops.some((stop) => stop.startsWith(this.#text.slice(-size)))) return size;
    }
    return 0;
  }
}
