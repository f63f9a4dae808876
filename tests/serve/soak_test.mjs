// The short form of tools/ci/soak.
import {soak} from './soak.mjs';

await soak(10);
