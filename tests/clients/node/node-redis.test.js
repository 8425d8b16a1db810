'use strict';
// node-redis in RESP2 and RESP3: commands, transactions, Pub/Sub, blocking, scripts, iterators, client-side caching.

const assert = require('node:assert/strict');
const { RESP_TYPES, WatchError, createClient, createClientPool, defineScript } = require('redis');
const { PATIENCE, PROXY, blocked, counter, direct, eventually, names, proxyTest, range, test } = require('./support');

const DATABASE = 7;
const SECONDS = PATIENCE / 1000;

/** By default nothing is tried again: a lost connection must not go unnoticed. */
const options = (RESP, { reconnectStrategy = false, ...more } = {}) => ({
  url: PROXY,
  RESP,
  database: DATABASE,
  socket: { reconnectStrategy, connectTimeout: PATIENCE },
  ...more,
});

/** A pool of clients of the proxy. */
async function connectPool(t, RESP, maximum) {
  const pool = createClientPool(options(RESP), { minimum: 2, maximum, acquireTimeout: PATIENCE });
  t.after(() => pool.destroy());
  return pool.connect();
}

/** A client of the proxy. */
async function connect(t, RESP, more) {
  const client = createClient(options(RESP, more));
  client.on('error', () => {}); // what was waiting is rejected, too
  t.after(() => client.isOpen && client.destroy());
  return client.connect();
}

const put = defineScript({
  SCRIPT: "redis.call('SET', KEYS[1], ARGV[1]); return {KEYS[1], ARGV[1], 7}",
  NUMBER_OF_KEYS: 1,
  parseCommand(parser, key, value) {
    parser.pushKey(key);
    parser.push(value);
  },
  transformReply: undefined,
});

for (const RESP of [2, 3]) {
  const both = (name, run) => test(`RESP${RESP}: ${name}`, (t) => run(t, names()));

  both('commands', async (t, { key, fire }) => {
    const r = await connect(t, RESP);
    assert.equal(await r.set(key('a'), 'ü', { expiration: { type: 'EX', value: 60 } }), 'OK');
    assert.equal(await r.get(key('a')), 'ü');
    assert.equal(await r.set(key('a'), 'x', { condition: 'NX' }), null);
    assert.equal(await r.set(fire, '1'), 'OK');
    assert.equal(await r.hSet(key('h'), { a: '1', b: 'zwei' }), 2);
    assert.deepEqual({ ...(await r.hGetAll(key('h'))) }, { a: '1', b: 'zwei' });
    assert.deepEqual(await r.mGet([key('a'), key('none')]), ['ü', null]);
    await r.zAdd(key('z'), [{ value: 'x', score: 1.5 }, { value: 'y', score: Infinity }]);
    assert.deepEqual(
      (await r.zRangeWithScores(key('z'), 0, -1)).map(({ value, score }) => [value, score]),
      [['x', 1.5], ['y', Infinity]]
    );
    assert.equal(await r.sAdd(key('s'), ['a', 'b']), 2);
    assert.deepEqual([...(await r.sMembers(key('s')))].sort(), ['a', 'b']);
    assert.equal(await r.rPush(key('l'), range(3000).map(String)), 3000);
    assert.deepEqual(await r.lRange(key('l'), 0, -1), range(3000).map(String));
    assert.equal(await r.incrByFloat(key('f'), 0.5), '0.5');
    assert.equal((await r.configGet('maxmemory')).maxmemory, '0');
    await assert.rejects(r.incr(key('h')), /WRONGTYPE/);
    await assert.rejects(r.sendCommand(['NO.SUCH']), /unknown command/);
    assert.equal(await r.ping(), 'PONG');
  });

  both('bytes, big and small', async (t, { key, fire }) => {
    const r = (await connect(t, RESP)).withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
    const every = Buffer.from(range(256));
    const name = Buffer.concat([Buffer.from(key('\r\n')), every]);
    assert.equal(await r.set(name, every), 'OK');
    assert.deepEqual(await r.get(name), every);
    const big = Buffer.alloc(8 << 20, every);
    for (const where of [key('big'), fire]) {
      assert.equal(await r.set(where, big), 'OK');
      assert.ok((await r.get(where)).equals(big));
    }
    await r.unlink([key('big'), fire]);
  });

  both('what is sent without waiting is answered in order', async (t, { fire }) => {
    const r = await connect(t, RESP);
    const replies = await Promise.all(range(2000).map((n) => (n % 100 ? r.echo(String(n)) : r.set(fire, n))));
    assert.deepEqual(replies, range(2000).map((n) => (n % 100 ? String(n) : 'OK')));
  });

  both('transactions and pipelines', async (t, { key, fire }) => {
    const r = await connect(t, RESP);
    const commands = () => r.multi().set(key('a'), '1').incr(key('a')).set(fire, 'x').get(key('a'));
    assert.deepEqual(await commands().exec(), ['OK', 2, 'OK', '2']);
    assert.deepEqual(await commands().execAsPipeline(), ['OK', 2, 'OK', '2']);
    const failed = await r.multi().set(key('a'), 'word').incr(key('a')).get(key('a')).exec().catch((error) => error);
    assert.match(failed.replies[1].message, /not an integer/);
    assert.deepEqual([failed.replies[0], failed.replies[2]], ['OK', 'word']);
    await assert.rejects(r.multi().addCommand(['SET', key('a')]).exec());
    assert.equal(await r.get(key('a')), 'word');
    // Many at once on one connection are not mixed.
    const all = await Promise.all(range(50).map((n) => r.multi().set(key(n), `${n}`).get(key(n)).exec()));
    assert.deepEqual(all, range(50).map((n) => ['OK', `${n}`]));
  });

  both('optimistic locking', async (t, { key }) => {
    const r = await connect(t, RESP);
    for (const writer of [await connect(t, RESP), direct(t, DATABASE)]) {
      await r.watch(key('n'));
      await writer.set(key('n'), '1');
      await assert.rejects(r.multi().set(key('n'), '2').exec(), WatchError);
      await r.watch(key('n'));
      assert.deepEqual(await r.multi().incr(key('n')).exec(), [2]);
    }
    // In a pool, each task has a connection of its own.
    const pool = await connectPool(t, RESP, 5);
    const add = () =>
      pool.execute(async (client) => {
        for (;;) {
          await client.watch(key('n'));
          const next = Number(await client.get(key('n'))) + 1;
          try {
            return await client.multi().set(key('n'), String(next)).exec();
          } catch (error) {
            if (!(error instanceof WatchError)) throw error;
          }
        }
      });
    await Promise.all(range(30).map(add));
    assert.equal(await r.get(key('n')), '32');
  });

  both('Pub/Sub', async (t, { token }) => {
    const [r, sub] = [await connect(t, RESP), await connect(t, RESP)];
    const [messages, patterns, shards] = [counter(), counter(), counter()];
    await sub.subscribe(token, (...message) => messages.push(message));
    await sub.pSubscribe(`${token}*`, (...message) => patterns.push(message));
    await sub.sSubscribe(token, (...message) => shards.push(message));
    assert.deepEqual(new Set(await Promise.all(range(200).map((n) => r.publish(token, `${n}`)))), new Set([2]));
    assert.equal(await r.sPublish(token, 'shard'), 1);
    const expected = range(200).map((n) => [`${n}`, token]);
    assert.deepEqual(await messages.atLeast(200), expected);
    assert.deepEqual(await patterns.atLeast(200), expected);
    assert.deepEqual(await shards.atLeast(1), [['shard', token]]);
    assert.deepEqual({ ...(await r.pubSubNumSub([token])) }, { [token]: 1 });
    if (RESP === 3) {
      // Messages come as pushes: the same connection takes commands.
      assert.equal(await sub.publish(token, 'own'), 2);
      assert.equal(await sub.echo('x'), 'x');
      assert.deepEqual((await messages.atLeast(201))[200], ['own', token]);
    }
    await sub.unsubscribe(token);
    await sub.pUnsubscribe(`${token}*`);
    await sub.sUnsubscribe(token);
    assert.equal(await r.publish(token, 'nobody listens'), 0);
    assert.equal(String(await sub.ping()), 'PONG');
  });

  both('blocking', async (t, { key, fire }) => {
    const r = await connect(t, RESP);
    const pool = await connectPool(t, RESP, 20);
    const d = direct(t, DATABASE);
    assert.equal(await pool.blPop(key('none'), 0.01), null);
    for (const queue of [key('q'), fire]) {
      const popped = pool.blPop([key('none'), queue], SECONDS);
      await blocked(d);
      assert.equal(await r.rPush(queue, 'job'), 1);
      assert.deepEqual({ ...(await popped) }, { key: queue, element: 'job' });
    }
    const popped = range(20).map(() => pool.blMove(key('q'), key('done'), 'LEFT', 'RIGHT', SECONDS));
    await blocked(d, 20);
    await r.rPush(key('q'), range(20).map(String));
    assert.deepEqual((await Promise.all(popped)).sort((a, b) => a - b), range(20).map(String));
    const isolated = await r.duplicate().connect();
    t.after(() => isolated.destroy());
    const xRead = (ms) => isolated.sendCommand(['XREAD', 'BLOCK', `${ms}`, 'STREAMS', key('s'), '$']);
    const read = xRead(PATIENCE);
    await blocked(d);
    const id = await r.xAdd(key('s'), '*', { a: 'b' });
    const entries = [[id, ['a', 'b']]];
    if (RESP === 3) assert.deepEqual({ ...(await read) }, { [key('s')]: entries });
    else assert.deepEqual(await read, [[key('s'), entries]]);
    assert.equal(await xRead(10), null);
  });

  both('scripts', async (t, { key, fire }) => {
    const r = await connect(t, RESP, { scripts: { put } });
    await direct(t, DATABASE).script('FLUSH');
    for (const name of [key('a'), fire]) {
      assert.deepEqual(await r.put(name, 'v'), [name, 'v', 7]);
      assert.deepEqual(await r.put(name, 'w'), [name, 'w', 7]);
    }
    await direct(t, DATABASE).script('FLUSH');
    assert.deepEqual(await r.multi().put(key('b'), 'x').get(key('b')).exec(), [[key('b'), 'x', 7], 'x']);
    await assert.rejects(r.eval("return redis.error_reply('ERR my words')"), /my words/);
    await assert.rejects(r.evalSha('f'.repeat(40)), /NOSCRIPT/);
  });

  both('iterators', async (t, { key }) => {
    const r = await connect(t, RESP);
    const expected = new Set(range(1000).map((n) => key(n)));
    await r.mSet([...expected].map((name) => [name, '1']));
    const found = new Set();
    for await (const some of r.scanIterator({ MATCH: key('*'), COUNT: 100 })) some.forEach((name) => found.add(name));
    assert.deepEqual(found, expected);
    await r.hSet(key('h'), Object.fromEntries(range(500).map((n) => [`f${n}`, `${n}`])));
    const fields = new Map();
    for await (const some of r.hScanIterator(key('h'), { COUNT: 50 }))
      some.forEach(({ field, value }) => fields.set(field, value));
    assert.deepEqual(fields, new Map(range(500).map((n) => [`f${n}`, `${n}`])));
  });

  both('names', async (t, { token }) => {
    const r = await connect(t, RESP, { name: token });
    assert.equal(await r.clientGetName(), token);
    assert.equal(await r.clientSetName(`${token}2`), 'OK');
    assert.equal(await r.clientGetName(), `${token}2`);
    const info = await r.clientInfo();
    assert.deepEqual([info.db, info.resp, info.id], [DATABASE, RESP, await r.clientId()]);
  });

  both('Redis shows the name', async (t, { token }) => {
    const r = await connect(t, RESP, { name: token });
    assert.equal((await r.clientInfo()).name, token);
    assert.deepEqual((await r.clientList()).filter(({ name }) => name === token).map(({ db }) => db), [DATABASE]);
  });

  both('a killed client comes back', async (t, { key, token }) => {
    const r = await connect(t, RESP, { reconnectStrategy: 1 });
    const id = await r.clientId();
    const ready = new Promise((resolve) => r.once('ready', resolve)); // once() would reject at the error
    assert.equal(await direct(t, DATABASE).client('KILL', 'ID', id), 1);
    await ready;
    assert.equal(await r.set(key('a'), '1'), 'OK');
    assert.notEqual(await r.clientId(), id);
    const sub = await connect(t, RESP, { reconnectStrategy: 1 });
    const messages = counter();
    const old = await sub.clientId();
    await sub.subscribe(token, (message) => messages.push(message));
    assert.equal(await direct(t, DATABASE).client('KILL', 'ID', old), 1);
    await eventually(async () => (await r.publish(token, 'again')) === 1);
    assert.deepEqual(await messages.atLeast(1), ['again']);
  });

  both('a client that is killed while it blocks is told', async (t, { key }) => {
    const r = await connect(t, RESP);
    const id = await r.clientId();
    const told = assert.rejects(r.blPop(key('q'), 0), /Socket closed|closed/i);
    await blocked(direct(t, DATABASE));
    assert.equal(await direct(t, DATABASE).client('KILL', 'ID', id), 1);
    await told;
  });

  both('a closed client gets its replies first', async (t, { token }) => {
    const r = await connect(t, RESP);
    const replies = Promise.all(range(100).map((n) => r.echo(`${n}${token}`)));
    await r.close();
    assert.deepEqual(await replies, range(100).map((n) => `${n}${token}`));
  });
}

test('RESP3 types', async (t) => {
  const r = await connect(t, 3);
  const { key } = names();
  const typed = r.withTypeMapping({ [RESP_TYPES.DOUBLE]: String, [RESP_TYPES.MAP]: Map });
  await r.zAdd(key('z'), { value: 'x', score: 1.5 });
  assert.equal(await typed.zScore(key('z'), 'x'), '1.5');
  await r.hSet(key('h'), 'a', 'b');
  assert.deepEqual(await typed.hGetAll(key('h')), new Map([['a', 'b']]));
  const values = "true, false, {double = 2.5}, {map = {a = 1}}, {big_number = '12345678901234567890'}";
  const script = `redis.setresp(3); return {${values}}`;
  const [yes, no, double, map, big] = await r.eval(script);
  assert.deepEqual([yes, no, double, { ...map }], [true, false, 2.5, { a: 1 }]);
  assert.equal(big, 12345678901234567890n);
});

test('client-side caching', async (t) => {
  const cache = { ttl: 0, maxEntries: 100, evictPolicy: 'LRU' };
  const r = await connect(t, 3, { clientSideCache: cache });
  const { key, fire } = names();
  for (const writer of [await connect(t, 3), await connect(t, 2), direct(t, DATABASE)]) {
    await writer.set(key('a'), 'old');
    await eventually(async () => (await r.get(key('a'))) === 'old');
    const { hitCount } = r.clientSideCache.stats();
    assert.equal(await r.get(key('a')), 'old');
    assert.equal(r.clientSideCache.stats().hitCount, hitCount + 1);
    await writer.set(key('a'), 'new');
    await eventually(async () => (await r.get(key('a'))) === 'new');
  }
  await r.set(fire, '1');
  assert.deepEqual(await r.mGet([key('a'), key('b')]), ['new', null]);
});

proxyTest('fan-outs reach the client-side cache', async (t) => {
  const r = await connect(t, 3, { clientSideCache: { ttl: 0, maxEntries: 100, evictPolicy: 'LRU' } });
  const { token } = names();
  await direct(t, DATABASE).set(`page:${token}:1`, 'old');
  assert.equal(await r.get(`page:${token}:1`), 'old');
  await (await connect(t, 2)).set(`post:${token}`, '1');
  await eventually(async () => (await r.get(`page:${token}:1`)) === null);
});

proxyTest('dependents are gone when the write is answered', async (t) => {
  const { token } = names();
  const d = direct(t, DATABASE);
  const pages = range(20).map((n) => `page:${token}:${n}`);
  for (const RESP of [2, 3]) {
    const r = await connect(t, RESP);
    const writes = [
      () => r.set(`post:${token}`, '1'),
      () => r.multi().get(pages[0]).set(`post:${token}`, '1').exec(),
      () => r.multi().get(pages[0]).set(`post:${token}`, '1').execAsPipeline(),
    ];
    for (const write of writes) {
      await d.mset(...pages.flatMap((page) => [page, 'old']));
      await write();
      assert.equal(await d.exists(...pages), 0);
    }
  }
});
