// node-redlock on ioredis as a contender of the benchmark: src/contender/mod.rs says what is asked of it.
'use strict';

const fs = require('node:fs');
const { once } = require('node:events');
const { setTimeout: sleep } = require('node:timers/promises');
const { parseArgs } = require('node:util');
const Redis = require('ioredis');
const Redlock = require('redlock');

const TTL = 30000;
const text = { type: 'string' };
const options = {
  servers: text,
  tasks: text,
  'settle-ms': { type: 'string', default: '0' },
  millis: text,
  'hold-ms': { type: 'string', default: '0' },
  id: text,
  inside: text,
  'pause-ms': text,
};
const { values: asked } = parseArgs({ options });
const settle = BigInt(asked['settle-ms']) * 1000000n;
const length = BigInt(asked.millis) * 1000000n;
const hold = Number(asked['hold-ms']);
const now = process.hrtime.bigint;
const first = Number(asked.id);

const nodes = asked.servers.split(',').map((port) => new Redis(Number(port), '127.0.0.1'));
const pause = asked['pause-ms'];
// It waits without limit; its own limit of ten attempts is less than the wait of this benchmark.
const polling = pause === undefined ? {} : { retryDelay: Number(pause), retryJitter: 0 };
const redlock = new Redlock(nodes, { retryCount: -1, ...polling });

async function waitForTheWord() {
  console.log('ready');
  await once(process.stdin, 'data');
}

async function takeOwn(name) {
  const began = now();
  const pairs = [];
  while (now() - began < length) {
    const pair = now();
    const lock = await redlock.lock(name, TTL);
    await lock.unlock();
    pairs.push(Number(now() - pair));
  }
  return { counts: [pairs.length], pairs, waits: [], handovers: [] };
}

async function takeSame() {
  const inside = fs.openSync(asked.inside, fs.constants.O_RDWR | fs.constants.O_CREAT);
  const last = Buffer.alloc(16);
  const [waits, handovers] = [[], []];
  const from = now() + settle;
  let count = 0;
  while (now() < from + length) {
    const wanted = now();
    const lock = await redlock.lock('bench', TTL);
    const entered = now();
    const counts = from <= entered && entered < from + length;
    const read = fs.readSync(inside, last, 0, 16, 0);
    if (counts && read === 16 && last.readBigUInt64LE(0) !== BigInt(first)) {
      const passed = Number(entered - last.readBigUInt64LE(8));
      waits.push(Number(entered - wanted));
      handovers.push(Math.max(passed, 0));
    }
    count += Number(counts);
    if (hold > 0) {
      await sleep(hold);
    }
    last.writeBigUInt64LE(BigInt(first), 0);
    last.writeBigUInt64LE(now(), 8);
    fs.writeSync(inside, last, 0, 16, 0);
    await lock.unlock();
  }
  return { counts: [count], pairs: [], waits, handovers };
}

async function main() {
  const names = Array.from({ length: Number(asked.tasks) }, (_, task) => `bench/${first + task}`);
  for (const name of names) {
    const warm = await redlock.lock(name, TTL);
    await warm.unlock();
  }
  await waitForTheWord();
  let outcome;
  if (asked.inside) {
    outcome = await takeSame();
  } else {
    const each = await Promise.all(names.map(takeOwn));
    outcome = {
      counts: each.flatMap((one) => one.counts),
      pairs: each.flatMap((one) => one.pairs),
      waits: [],
      handovers: [],
    };
  }
  // The whole line has to be out before the process is gone.
  process.stdout.write(JSON.stringify(outcome) + '\n', () => process.exit());
}

main();
