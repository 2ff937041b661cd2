/** Types of index.js, which says what everything means. */
export class OnnxportError extends Error {}
export class BundleError extends OnnxportError {}
export class UsageError extends OnnxportError {}
export class TextError extends OnnxportError {}

export interface Message {
  role: string;
  content: string;
  [name: string]: unknown;
}

/** A text, token ids, or a conversation. */
export type Input = string | readonly number[] | readonly Message[];

export interface LoadOptions {
  precision?: string;
  device?: "cpu" | "webgpu";
  threads?: number;
  verify?: boolean;
  cache?: boolean;
  progress?: (state: { file: string; loaded: number; total: number }) => void;
  ort?: unknown;
}

export interface GenerateOptions {
  maxNewTokens?: number | null;
  minNewTokens?: number | null;
  temperature?: number | null;
  topK?: number | null;
  topP?: number | null;
  repetitionPenalty?: number | null;
  noRepeatNgram?: number | null;
  seed?: number | bigint | null;
  stop?: string | readonly string[] | null;
  stopTokenIds?: readonly number[] | null;
  srcLang?: string | null;
  tgtLang?: string | null;
  signal?: AbortSignal | null;
}

export interface Generation {
  /** null where the bundle has no tokenizer */
  text: string | null;
  /** new ids, without the one that ended the answer */
  tokens: number[];
  tokenLogprobs: number[];
  score: number;
  finishReason: "eos" | "length" | "stop" | "empty";
}

export interface EncodeOptions {
  prompt?: string | null;
  promptName?: string | null;
  normalize?: boolean | null;
  truncateDim?: number | null;
}

export interface Stream extends AsyncIterable<string> {
  /** the whole answer, once all pieces were read; null before */
  readonly result: Generation | null;
}

export class Model {
  private constructor();
  readonly task: string;
  readonly precision: string;
  readonly manifest: Record<string, unknown>;
  generate(inputs: readonly string[] | readonly (readonly number[])[] | readonly (readonly Message[])[], options?: GenerateOptions): Promise<Generation[]>;
  generate(input: Input, options?: GenerateOptions): Promise<Generation>;
  stream(input: Input, options?: GenerateOptions): Stream;
  chat(messages: readonly Message[], options?: GenerateOptions): Promise<Generation>;
  prompt(messages: readonly Message[]): number[];
  encode(text: string, options?: EncodeOptions): Promise<Float32Array>;
  encode(texts: readonly string[], options?: EncodeOptions): Promise<Float32Array[]>;
  run(feeds: Record<string, unknown>): Promise<Record<string, unknown>>;
  close(): Promise<void>;
}

export function load(location: string | URL, options?: LoadOptions): Promise<Model>;
