"""HTTP over the runtime: OpenAI's API, KServe's open inference protocol and Triton's model repositories, for loaded bundles."""
