/** The Chromium that tests drive. `node tests/chromium.js` prints where it is, and ends with 1 where there is none. */
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const PLACES = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];

/** The path of a Chromium: that of the environment, or one in a usual place. It throws where there is none: tests that did not run have not passed. */
export function chromium() {
  const places = process.env.CHROMIUM ? [process.env.CHROMIUM] : PLACES;
  const found = places.find((path) => existsSync(path));
  if (found) return found;
  throw new Error(
    `no Chromium at ${places.join(", ")}; install one (apt-get install chromium), say where one is with CHROMIUM=PATH, or run Node's tests alone: npm run test:node`,
  );
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    console.log(chromium());
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  }
}
