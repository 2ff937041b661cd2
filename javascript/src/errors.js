/** What the module refuses, in one line: what was found, what was expected, what to do next. */
export class OnnxportError extends Error {
  get name() {
    return this.constructor.name;
  }
}

/** The bundle is damaged, foreign, or made for another runtime. */
export class BundleError extends OnnxportError {}

/** An option or a call that cannot be. */
export class UsageError extends OnnxportError {}

/** An input that the model cannot read. */
export class TextError extends OnnxportError {}
