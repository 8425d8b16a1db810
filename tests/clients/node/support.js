'use strict';
// What all tests use: the addresses of the proxy and of Redis itself, keys of their own, and patience.

const nodeTest = require('node:test');
const { randomUUID } = require('node:crypto');
const Redis = require('ioredis');

const PROXY = process.env.REDIS_URL;
const DIRECT = process.env.DIRECT_URL;
// How long anything may take before a test gives up. Long, because machines are slow and shared.
const PATIENCE = 30_000;

// A test that hangs fails; node 18 knows no such option for all of them.
const test = (name, options, run = options) => nodeTest(name, { timeout: 2 * PATIENCE, ...options }, run);
// About what Redis alone does not do.
const proxyTest = (name, run) => test(name, { skip: PROXY === DIRECT && 'there is no proxy' }, run);

/** Keys of one test. Those made by `key` are dependents in the rules of the proxy, writes to `fire` are triggers. */
function names() {
  const token = randomUUID();
  return { token, key: (name) => `k:${token}:${name}`, fire: `fire:${token}` };
}

/** Waits until `check` gives something. */
async function eventually(check) {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    const found = await check();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`not in time: ${check}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** A client of Redis itself, closed when the test ends. */
function direct(t, db) {
  const client = new Redis(DIRECT, { db, retryStrategy: null, connectTimeout: PATIENCE });
  t.after(() => client.disconnect());
  return client;
}

/** Waits until so many clients are blocked in Redis. */
const blocked = (redis, count = 1) =>
  eventually(async () => Number(/blocked_clients:(\d+)/.exec(await redis.info('clients'))[1]) >= count);

/** How many times something happened, and a way to wait for one more. */
function counter() {
  let waiting = [];
  const seen = [];
  return {
    seen,
    push(value) {
      seen.push(value);
      waiting = waiting.filter(({ count, resolve }) => seen.length < count || resolve(seen));
    },
    atLeast: (count) =>
      seen.length >= count ? Promise.resolve(seen) : new Promise((resolve) => waiting.push({ count, resolve })),
  };
}

const range = (count) => [...Array(count).keys()];

module.exports = { DIRECT, PATIENCE, PROXY, blocked, counter, direct, eventually, names, proxyTest, range, test };
