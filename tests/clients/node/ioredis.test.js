'use strict';
// ioredis: commands, pipelines, transactions, Pub/Sub, blocking, scripts, prefixes, lost connections.

const assert = require('node:assert/strict');
const { once } = require('node:events');
const Redis = require('ioredis');
const { PATIENCE, PROXY, blocked, counter, direct, eventually, names, proxyTest, range, test } = require('./support');

const DATABASE = 8;

/** A client of the proxy. Nothing is tried again, unless asked for: a lost connection must not go unnoticed. */
function connect(t, options = {}) {
  const once = { retryStrategy: null, maxRetriesPerRequest: 0, connectTimeout: PATIENCE };
  const client = new Redis(PROXY, { db: DATABASE, ...once, ...options });
  t.after(() => client.disconnect());
  return client;
}

test('commands', async (t) => {
  const r = connect(t);
  const { key, fire } = names();
  assert.equal(await r.set(key('a'), 'ü', 'EX', 60), 'OK');
  assert.equal(await r.get(key('a')), 'ü');
  assert.equal(await r.set(key('a'), 'x', 'NX'), null);
  assert.equal(await r.set(fire, 1), 'OK');
  assert.equal(await r.hset(key('h'), { a: 1, b: 'zwei' }), 2);
  assert.deepEqual(await r.hgetall(key('h')), { a: '1', b: 'zwei' });
  assert.deepEqual(await r.hgetall(key('none')), {});
  assert.deepEqual(await r.mget(key('a'), key('none')), ['ü', null]);
  assert.equal(await r.zadd(key('z'), 1.5, 'x', '+inf', 'y'), 2);
  assert.deepEqual(await r.zrange(key('z'), 0, -1, 'WITHSCORES'), ['x', '1.5', 'y', 'inf']);
  assert.equal(await r.incrby(key('n'), 2 ** 40), 2 ** 40);
  assert.equal(await r.rpush(key('l'), range(5000)), 5000);
  assert.deepEqual(await r.lrange(key('l'), 0, -1), range(5000).map(String));
  assert.equal(await r.lpop(key('none')), null);
  assert.deepEqual((await r.call('COMMAND', 'GETKEYS', 'GET', 'k'))[0], 'k');
  assert.deepEqual(await r.geopos(key('none'), 'a'), [null]);
  await assert.rejects(r.incr(key('h')), /^ReplyError: WRONGTYPE/);
  await assert.rejects(r.call('NO.SUCH'), /unknown command/);
  assert.equal(await r.ping(), 'PONG');
});

test('bytes, big and small', async (t) => {
  const r = connect(t);
  const { key, fire } = names();
  const every = Buffer.from(range(256));
  const name = Buffer.concat([Buffer.from(key('\r\n')), every]);
  assert.equal(await r.set(name, every), 'OK');
  assert.deepEqual(await r.getBuffer(name), every);
  const big = Buffer.alloc(8 << 20, every);
  for (const where of [key('big'), fire]) {
    assert.equal(await r.set(where, big), 'OK');
    assert.ok((await r.getBuffer(where)).equals(big));
  }
  await r.unlink(key('big'), fire);
});

test('big numbers as strings', async (t) => {
  const r = connect(t, { stringNumbers: true });
  const { key } = names();
  await r.set(key('n'), '9223372036854775806');
  assert.equal(await r.incr(key('n')), '9223372036854775807');
  await assert.rejects(r.incr(key('n')), /overflow/);
});

test('pipelines', async (t) => {
  const r = connect(t);
  const { key, fire } = names();
  const pipeline = r.pipeline();
  for (const n of range(1000)) pipeline.set(key(n), n).get(key(n));
  pipeline.set(fire, 'word').incr(fire).get(fire);
  const replies = await pipeline.exec();
  assert.deepEqual(replies.slice(0, 2000), range(1000).flatMap((n) => [[null, 'OK'], [null, String(n)]]));
  assert.deepEqual(replies[2000], [null, 'OK']);
  assert.match(replies[2001][0].message, /not an integer/);
  assert.deepEqual(replies[2002], [null, 'word']);
});

test('what is sent without waiting is answered in order', async (t) => {
  const r = connect(t);
  const { fire } = names();
  const replies = await Promise.all(range(2000).map((n) => (n % 100 ? r.echo(n) : r.set(fire, n))));
  assert.deepEqual(replies, range(2000).map((n) => (n % 100 ? String(n) : 'OK')));
});

test('automatic pipelines', async (t) => {
  const r = connect(t, { enableAutoPipelining: true });
  const { key, fire } = names();
  await Promise.all(range(500).map((n) => r.set(key(n), n)));
  const replies = await Promise.all([...range(500).map((n) => r.get(key(n))), r.incr(fire), r.get(fire)]);
  assert.deepEqual(replies, [...range(500).map(String), 1, '1']);
});

test('transactions', async (t) => {
  const r = connect(t);
  const { key, fire } = names();
  assert.deepEqual(
    await r.multi().set(key('a'), 'x').incr(key('a')).set(fire, 1).get(key('a')).exec().then((replies) =>
      replies.map(([error, reply]) => error?.message ?? reply)
    ),
    ['OK', 'ERR value is not an integer or out of range', 'OK', 'x']
  );
  // Step by step.
  assert.equal(await r.multi({ pipeline: false }), 'OK');
  assert.equal(await r.set(key('b'), 1), 'QUEUED');
  assert.equal(await r.get(key('b')), 'QUEUED');
  assert.deepEqual(await r.exec(), [[null, 'OK'], [null, '1']]);
  await r.multi({ pipeline: false });
  await r.set(key('b'), 2);
  assert.equal(await r.discard(), 'OK');
  assert.equal(await r.get(key('b')), '1');
  // What cannot be queued.
  await assert.rejects(r.multi().set(key('b')).exec(), /EXECABORT/);
  assert.equal(await r.get(key('b')), '1');
});

test('optimistic locking', async (t) => {
  const { key } = names();
  const [r, other] = [connect(t), connect(t)];
  for (const writer of [other, direct(t, DATABASE)]) {
    await r.watch(key('n'));
    await writer.set(key('n'), 1);
    assert.equal(await r.multi().set(key('n'), 2).exec(), null);
    await r.watch(key('n'));
    assert.deepEqual(await r.multi().incr(key('n')).exec(), [[null, 2]]);
  }
});

test('Pub/Sub', async (t) => {
  const { token } = names();
  const [sub, pub] = [connect(t), connect(t)];
  const [messages, patterns, shards] = [counter(), counter(), counter()];
  sub.on('message', (...message) => messages.push(message));
  sub.on('pmessageBuffer', (...message) => patterns.push(message.map(String)));
  sub.on('smessage', (...message) => shards.push(message));
  assert.equal(await sub.subscribe(token, `${token}2`), 2);
  assert.equal(await sub.psubscribe(`${token}*`), 3);
  assert.equal(await sub.ssubscribe(token), 1);
  await assert.rejects(sub.get('a'), /subscriber mode/);
  const sent = await Promise.all(range(200).map((n) => pub.publish(token, n)));
  assert.deepEqual(new Set(sent), new Set([2]));
  assert.deepEqual(await messages.atLeast(200), range(200).map((n) => [token, String(n)]));
  assert.deepEqual(await patterns.atLeast(200), range(200).map((n) => [`${token}*`, token, String(n)]));
  assert.equal(await pub.spublish(token, 'shard'), 1);
  assert.deepEqual(await shards.atLeast(1), [[token, 'shard']]);
  assert.equal(await sub.unsubscribe(token, `${token}2`), 1);
  assert.equal(await sub.sunsubscribe(token), 0);
  assert.equal(await sub.punsubscribe(), 0);
  assert.equal(await pub.publish(token, 'nobody listens'), 0);
  // An ordinary client again.
  assert.equal(await sub.set(token, 1, 'EX', 60), 'OK');
});

test('blocking', async (t) => {
  const { key, fire } = names();
  const [consumer, producer] = [connect(t), connect(t)];
  assert.equal(await consumer.blpop(key('none'), 0.01), null);
  assert.equal(await consumer.xread('BLOCK', 10, 'STREAMS', key('s'), '$'), null);
  for (const queue of [key('q'), fire]) {
    for (const n of range(5)) {
      const popped = consumer.brpop(key('none'), queue, PATIENCE / 1000);
      await blocked(producer);
      assert.equal(await producer.lpush(queue, n), 1);
      assert.deepEqual(await popped, [queue, String(n)]);
    }
  }
  const read = consumer.xread('BLOCK', PATIENCE, 'STREAMS', key('s'), '$');
  await blocked(producer);
  const id = await producer.xadd(key('s'), '*', 'a', 1);
  assert.deepEqual(await read, [[key('s'), [[id, ['a', '1']]]]]);
  // What is sent behind a blocked command waits for it.
  const replies = Promise.all([consumer.blpop(key('q'), PATIENCE / 1000), consumer.get(key('q2'))]);
  await blocked(producer);
  await producer.multi().set(key('q2'), 'set').rpush(key('q'), 'x').exec();
  assert.deepEqual(await replies, [[key('q'), 'x'], 'set']);
});

test('many consumers take each job once', async (t) => {
  const { key } = names();
  const consumers = range(20).map(() => connect(t));
  const producer = connect(t);
  const popped = consumers.map((consumer) => consumer.blmove(key('q'), key('done'), 'LEFT', 'RIGHT', 0));
  await blocked(producer, 20);
  await producer.rpush(key('q'), range(20));
  assert.deepEqual((await Promise.all(popped)).sort((a, b) => a - b), range(20).map(String));
  assert.equal(await producer.llen(key('done')), 20);
});

test('scripts', async (t) => {
  const { key, fire } = names();
  const lua = "redis.call('SET', KEYS[1], ARGV[1]); return {KEYS[1], ARGV[1], #ARGV}";
  const r = connect(t, { scripts: { put: { lua, numberOfKeys: 1 } } });
  r.defineCommand('fails', { numberOfKeys: 0, lua: "return redis.error_reply('ERR my words')" });
  r.defineCommand('look', { numberOfKeys: 1, lua: "return redis.call('GET', KEYS[1])", readOnly: true });
  // Unknown at first, so that EVAL follows a NOSCRIPT.
  await direct(t, DATABASE).script('FLUSH');
  for (const name of [key('a'), fire]) {
    assert.deepEqual(await r.put(name, 'v'), [name, 'v', 1]);
    assert.deepEqual(await r.put(name, 'w'), [name, 'w', 1]);
    assert.equal((await r.lookBuffer(name)).toString(), 'w');
  }
  await assert.rejects(r.fails(), /my words/);
  await direct(t, DATABASE).script('FLUSH');
  const expected = [[null, [key('b'), '1', 1]], [null, '1']];
  assert.deepEqual(await r.pipeline().put(key('b'), 1).look(key('b')).exec(), expected);
  assert.deepEqual(await r.multi().put(key('b'), 1).look(key('b')).exec(), expected);
  assert.deepEqual(await r.eval('return {1, {2, {3}}, false, ARGV[1]}', 0, 'x'), [1, [2, [3]], null, 'x']);
});

test('prefixes', async (t) => {
  const { key } = names();
  const r = connect(t, { keyPrefix: key('') });
  const plain = connect(t);
  await r.mset({ a: 1, b: 2 });
  assert.deepEqual(await plain.mget(key('a'), key('b')), ['1', '2']);
  assert.deepEqual(await r.pipeline().get('a').del('b').exists('b').exec(), [[null, '1'], [null, 1], [null, 0]]);
  assert.equal(await r.eval("return redis.call('GET', KEYS[1])", 1, 'a'), '1');
  await r.zadd('x', 1, 'm');
  assert.equal(await r.zunionstore('y', 2, 'x', 'none'), 1);
  assert.equal(await plain.zscore(key('y'), 'm'), '1');
});

test('streams of SCAN', async (t) => {
  const { key } = names();
  const r = connect(t);
  const expected = new Set(range(1000).map((n) => key(n)));
  await r.mset(...[...expected].flatMap((name) => [name, 1]));
  await r.hset(key('h'), Object.fromEntries(range(1000).map((n) => [`f${n}`, n])));
  const found = new Set();
  const stream = r.scanStream({ match: key('*'), count: 100, type: 'string' });
  for await (const some of stream) some.forEach((name) => found.add(name));
  assert.deepEqual(found, expected);
  const fields = [];
  for await (const some of r.hscanStream(key('h'), { count: 100 })) fields.push(...some);
  assert.equal(new Set(fields).size, 2000);
});

test('consumer groups', async (t) => {
  const { key } = names();
  const [reader, writer] = [connect(t), connect(t)];
  await writer.xgroup('CREATE', key('s'), 'g', '$', 'MKSTREAM');
  const read = reader.xreadgroup('GROUP', 'g', 'me', 'BLOCK', PATIENCE, 'STREAMS', key('s'), '>');
  await blocked(writer);
  const id = await writer.xadd(key('s'), '*', 'a', 'b');
  assert.deepEqual(await read, [[key('s'), [[id, ['a', 'b']]]]]);
  assert.deepEqual(await writer.xpending(key('s'), 'g'), [1, id, id, [['me', '1']]]);
  assert.equal(await reader.xack(key('s'), 'g', id), 1);
});

test('names and databases', async (t) => {
  const { token } = names();
  const r = connect(t, { connectionName: token });
  assert.equal(await r.client('GETNAME'), token);
  assert.match(await r.client('INFO'), / db=8 .* resp=2/);
  assert.equal(await r.select(9), 'OK');
  await r.set(token, 'nine', 'EX', 60);
  assert.equal(await r.client('GETNAME'), token);
  assert.match(await r.client('INFO'), / db=9 /);
  assert.equal(await connect(t).get(token), null);
  assert.equal(await connect(t, { db: 9 }).get(token), 'nine');
});

test('Redis shows the name', async (t) => {
  const { token } = names();
  const r = connect(t, { connectionName: token });
  const id = await r.client('ID');
  assert.ok((await r.client('INFO')).includes(` name=${token} `));
  assert.ok((await direct(t, DATABASE).client('LIST', 'ID', id)).includes(` name=${token} `));
});

test('MONITOR', async (t) => {
  const { key } = names();
  const r = connect(t);
  const monitor = await r.monitor();
  t.after(() => monitor.disconnect());
  const commands = counter();
  monitor.on('monitor', (_, command) => command[1] === key('seen') && commands.push(command));
  await r.set(key('seen'), 'x');
  assert.deepEqual(await commands.atLeast(1), [['set', key('seen'), 'x']]);
});

test('a killed client comes back', async (t) => {
  const { key, token } = names();
  const r = connect(t, { retryStrategy: () => 1, maxRetriesPerRequest: 5 });
  const id = await r.client('ID');
  const gone = once(r, 'reconnecting');
  assert.equal(await direct(t, DATABASE).client('KILL', 'ID', id), 1);
  await gone;
  assert.equal(await r.set(key('a'), 1), 'OK');
  assert.notEqual(await r.client('ID'), id);
  // A subscriber subscribes again.
  const sub = connect(t, { retryStrategy: () => 1 });
  const messages = counter();
  sub.on('message', (...message) => messages.push(message));
  const old = await sub.client('ID');
  await sub.subscribe(token);
  assert.equal(await direct(t, DATABASE).client('KILL', 'ID', old), 1);
  await eventually(async () => (await r.publish(token, 'again')) === 1);
  assert.deepEqual((await messages.atLeast(1))[0], [token, 'again']);
});

test('a client that is killed while it blocks is told', async (t) => {
  const { key } = names();
  const r = connect(t);
  r.on('error', () => {});
  const id = await r.client('ID');
  const popped = r.blpop(key('q'), 0);
  const told = assert.rejects(popped, /Connection is closed|max retries/i);
  await blocked(direct(t, DATABASE));
  assert.equal(await direct(t, DATABASE).client('KILL', 'ID', id), 1);
  await told;
});

test('QUIT', async (t) => {
  const r = connect(t);
  const ended = once(r, 'end');
  assert.deepEqual(await Promise.all([r.echo('x'), r.quit()]), ['x', 'OK']);
  await ended;
});

proxyTest('dependents are gone when the write is answered', async (t) => {
  const { token } = names();
  const [r, d] = [connect(t), direct(t, DATABASE)];
  const pages = range(20).map((n) => `page:${token}:${n}`);
  const writes = [
    () => r.set(`post:${token}`, 1),
    () => r.pipeline().get(pages[0]).set(`post:${token}`, 1).exec(),
    () => r.multi().get(pages[0]).set(`post:${token}`, 1).exec(),
    () => r.eval("return redis.call('SET', KEYS[1], 1)", 1, `post:${token}`),
  ];
  for (const write of writes) {
    await d.mset(...pages.flatMap((page) => [page, 'old']));
    await write();
    assert.equal(await d.exists(...pages), 0);
  }
});
