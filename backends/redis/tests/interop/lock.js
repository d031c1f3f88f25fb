// A lock of node-redlock, told by lines what to do; it answers each with yes or no. Arguments: port, key, TTL in ms.
const Redis = require('ioredis');
const Redlock = require('redlock');

const [port, key, ttl] = process.argv.slice(1);
const redlock = new Redlock([new Redis(Number(port))], { retryCount: 0 });
let lock;
const verbs = {
  acquire: async () => { lock = await redlock.lock(key, Number(ttl)); },
  extend: () => lock.extend(Number(ttl)),
  release: () => lock.unlock(),
};

async function obey(lines) {
  for await (const line of lines) {
    try {
      await verbs[line]();
      console.log('yes');
    } catch (error) {
      if (!(error instanceof Redlock.LockError)) throw error;
      console.log('no');
    }
  }
}
obey(require('readline').createInterface({ input: process.stdin }));
