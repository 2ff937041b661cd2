/** A missing Chromium fails: what did not run must not look passed. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const environment = { ...process.env, CHROMIUM: "/nowhere/chromium" };
delete environment.NODE_TEST_CONTEXT; // a runner in a runner would report to the outer one

test("without a Chromium the check and the browser's suite end with 1 and say what to do", () => {
  for (const command of [[path("chromium.js")], ["--test", path("browser.test.js")]]) {
    const { status, stdout, stderr } = spawnSync(process.execPath, command, { env: environment, encoding: "utf8", timeout: 60_000 });
    assert.equal(status, 1);
    assert.match(stdout + stderr, /no Chromium at \/nowhere\/chromium; install one/);
  }
});
