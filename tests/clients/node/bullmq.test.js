'use strict';
// BullMQ: queues, workers, flows and events; on ioredis and on node-redis.

const assert = require('node:assert/strict');
const { once } = require('node:events');
const { FlowProducer, Job, Queue, QueueEvents, Worker } = require('bullmq');
const Redis = require('ioredis');
const { createClient } = require('redis');
const { PATIENCE, PROXY, counter, eventually, names, range, test } = require('./support');

const DATABASE = 6;

/** BullMQ with one of the two clients; everything is closed when the test ends. */
const DRIVERS = {
  ioredis(t) {
    return () => {
      const client = new Redis(PROXY, { db: DATABASE, maxRetriesPerRequest: null, connectTimeout: PATIENCE });
      t.after(() => client.disconnect());
      return client;
    };
  },
  'node-redis'(t) {
    return () => {
      const client = createClient({ url: PROXY, database: DATABASE, socket: { connectTimeout: PATIENCE } });
      client.on('error', () => {});
      t.after(() => client.isOpen && client.destroy());
      return client;
    };
  },
};

for (const [driver, connector] of Object.entries(DRIVERS)) {
  const each = (name, run) =>
    test(`${driver}: ${name}`, async (t) => {
      const { token } = names();
      const connection = connector(t);
      const open = [];
      const keep = (thing) => {
        thing.on('error', (error) => t.diagnostic(`${error}`)).setMaxListeners(0);
        open.push(thing);
        return thing;
      };
      try {
        await run(
          {
            token,
            queue: (options) => keep(new Queue(token, { connection: connection(), ...options })),
            worker: (work, options) => keep(new Worker(token, work, { connection: connection(), ...options })),
            // From the beginning, so that nothing is missed before the first read.
            events: () => keep(new QueueEvents(token, { connection: connection(), lastEventId: '0' })),
            flows: () => keep(new FlowProducer({ connection: connection() })),
          },
          t
        );
      } finally {
        await Promise.all(open.map((thing) => thing.close()));
      }
    });

  each('jobs', async ({ queue, worker, events }) => {
    const [q, e] = [queue(), events()];
    await e.waitUntilReady();
    const waiting = await q.add('early', { n: -1 });
    const w = worker(async ({ name, data }) => ({ name, twice: 2 * data.n }), { concurrency: 5 });
    await w.waitUntilReady();
    assert.deepEqual(await waiting.waitUntilFinished(e, PATIENCE), { name: 'early', twice: -2 });
    // The worker waits each time.
    for (const n of range(10)) {
      const job = await q.add('one', { n });
      assert.deepEqual(await job.waitUntilFinished(e, PATIENCE), { name: 'one', twice: 2 * n });
    }
    const bulk = range(100).map((n) => ({ name: 'bulk', data: { n }, opts: { priority: 1 + (n % 3) } }));
    const jobs = await q.addBulk(bulk);
    const results = await Promise.all(jobs.map((job) => job.waitUntilFinished(e, PATIENCE)));
    assert.deepEqual(results, range(100).map((n) => ({ name: 'bulk', twice: 2 * n })));
    const counts = await q.getJobCounts('completed', 'failed', 'wait', 'active', 'delayed');
    assert.deepEqual(counts, { completed: 111, failed: 0, wait: 0, active: 0, delayed: 0 });
  });

  each('failures and retries', async ({ queue, worker, events }) => {
    const [q, e] = [queue(), events()];
    await e.waitUntilReady();
    worker(async (job) => {
      await job.log(`attempt ${job.attemptsMade}`);
      if (job.name === 'never' || job.attemptsMade < 2) throw new Error('my words');
      return 'at last';
    });
    const lucky = await q.add('lucky', {}, { attempts: 3 });
    const slow = await q.add('lucky', {}, { attempts: 3, backoff: { type: 'fixed', delay: 20 } });
    const never = await q.add('never', {}, { attempts: 2 });
    assert.equal(await lucky.waitUntilFinished(e, PATIENCE), 'at last');
    assert.equal(await slow.waitUntilFinished(e, PATIENCE), 'at last');
    await assert.rejects(never.waitUntilFinished(e, PATIENCE), /my words/);
    assert.deepEqual((await q.getJobLogs(lucky.id)).logs, ['attempt 0', 'attempt 1', 'attempt 2']);
    const failed = await q.getFailed();
    assert.deepEqual(failed.map(({ id, failedReason }) => [id, failedReason]), [[never.id, 'my words']]);
    assert.equal((await Job.fromId(q, never.id)).attemptsMade, 2);
  });

  each('later and again', async ({ queue, worker, events }) => {
    const [q, e] = [queue(), events()];
    await e.waitUntilReady();
    const done = counter();
    worker(async ({ name }) => done.push(name));
    const delayed = await q.add('delayed', {}, { delay: 100 });
    await q.upsertJobScheduler('often', { every: 50 }, { name: 'again' });
    await delayed.waitUntilFinished(e, PATIENCE);
    await eventually(() => done.seen.filter((name) => name === 'again').length >= 3);
    assert.ok(done.seen.includes('delayed'));
    assert.equal((await q.getJobSchedulers()).length, 1);
    assert.equal(await q.removeJobScheduler('often'), true);
    assert.equal((await q.getJobSchedulers()).length, 0);
  });

  each('flows', async ({ token, queue, worker, events, flows }) => {
    const [, e] = [queue(), events()];
    await e.waitUntilReady();
    worker(
      async (job) =>
        job.name === 'parent'
          ? Object.values(await job.getChildrenValues()).reduce((sum, value) => sum + value, 0)
          : job.data.n,
      { concurrency: 4 }
    );
    const children = range(10).map((n) => ({ name: 'child', queueName: token, data: { n } }));
    const inner = { name: 'parent', queueName: token, children };
    const last = { name: 'child', queueName: token, data: { n: 100 } };
    const { job } = await flows().add({ name: 'parent', queueName: token, children: [inner, last] });
    assert.equal(await job.waitUntilFinished(e, PATIENCE), 145);
  });

  each('events and pauses', async ({ queue, worker, events }) => {
    const [q, e] = [queue(), events()];
    await e.waitUntilReady();
    const seen = counter();
    for (const event of ['waiting', 'active', 'progress', 'completed', 'paused', 'resumed'])
      e.on(event, ({ jobId }) => seen.push(jobId ? `${event} ${jobId}` : event));
    await q.pause();
    await q.add('job', {}, { jobId: 'first' });
    worker(async (job) => job.updateProgress(50));
    await seen.atLeast(2);
    assert.equal(await q.isPaused(), true);
    assert.equal((await q.getJobs(['wait', 'paused'])).length, 1);
    await q.resume();
    await seen.atLeast(6);
    assert.deepEqual(
      seen.seen.filter((event) => event !== 'waiting first'),
      ['paused', 'resumed', 'active first', 'progress first', 'completed first']
    );
  });

  each('two workers share the jobs', async ({ queue, worker, events }) => {
    const [q, e] = [queue(), events()];
    await e.waitUntilReady();
    const done = range(2).map(() => []);
    const workers = done.map((mine) => worker(async ({ data }) => mine.push(data.n), { concurrency: 3 }));
    await Promise.all(workers.map((w) => w.waitUntilReady()));
    const drained = once(e, 'drained');
    const jobs = await q.addBulk(range(100).map((n) => ({ name: 'job', data: { n } })));
    await Promise.all(jobs.map((job) => job.waitUntilFinished(e, PATIENCE)));
    await drained;
    assert.deepEqual(done.flat().sort((a, b) => a - b), range(100));
  });

  each('cleaning up', async ({ queue }) => {
    const q = queue();
    await q.addBulk(range(50).map((n) => ({ name: 'job', data: { n }, opts: { jobId: `id-${n}` } })));
    await q.add('again', {}, { jobId: 'id-1' });
    assert.equal(await q.count(), 50);
    assert.equal(await q.remove('id-7'), 1);
    assert.equal((await q.clean(0, 10, 'wait')).length, 10);
    await q.drain();
    assert.equal(await q.count(), 0);
    await q.obliterate({ force: true });
    assert.equal(await q.getJobCountByTypes('wait', 'completed'), 0);
  });
}

test('workers are found by their names', async (t) => {
  const { token } = names();
  const connection = { url: `${PROXY}/${DATABASE}` };
  const queue = new Queue(token, { connection });
  const workers = ['one', 'two'].map((name) => new Worker(token, async () => {}, { connection, name }));
  t.after(() => Promise.all([...workers, queue].map((thing) => thing.close())));
  // BullMQ looks for the names in CLIENT LIST. A worker that has nothing to do waits in BZPOPMIN.
  let found;
  await eventually(async () => {
    found = (await queue.getWorkers()).map(({ rawname, cmd }) => `${rawname.split(':').pop()} ${cmd}`).sort();
    return found.length === 2 && found.every((line) => line.endsWith('bzpopmin'));
  }).catch(() => {});
  assert.deepEqual(found, ['one bzpopmin', 'two bzpopmin']);
});
