import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { connectKafka, type KafkaConnection } from '../../../src/sinks/kafka/client.ts';
import type { KafkaProduce } from '../../../src/sinks/kafka/partition-queue.ts';
import type { TransactionalProducer } from '../../../src/sinks/kafka/producer.ts';
import { startKafka } from '../../support/kafka.ts';
import { plainAddress, readTopic } from '../../support/kafka-topic.ts';

const settings = {
  'transaction.abort.timed.out.transaction.cleanup.interval.ms': '500',
  // Records of 1970 would be gone half a minute after the broker has started.
  'log.retention.ms': '-1',
};
const kafka = await startKafka({ own: true, settings });
if ('skipped' in kafka) {
  describe.skip(`Kafka (${kafka.skipped})`, () => {
    it('was not tested', () => undefined);
  });
} else {
  afterAll(() => kafka.stop());
  const connections: KafkaConnection[] = [];
  afterAll(() => Promise.all(connections.map((one) => one.close())));
  const connect = async (waits: { requestTimeoutMs?: number; retryForMs?: number } = {}): Promise<KafkaConnection> => {
    const connection = await connectKafka({ ...plainAddress(kafka.brokers), ...waits });
    connections.push(connection);
    return connection;
  };
  const newTopics = async (connection: KafkaConnection, partitions = 3): Promise<{ topic: string; progress: string; id: string }> => {
    const id = `sink-${randomBytes(4).toString('hex')}`;
    await connection.ensureTopic({ name: id, partitions });
    await connection.ensureTopic({ name: `${id}-progress`, partitions: 1, config: { 'cleanup.policy': 'compact' } });
    return { topic: id, progress: `${id}-progress`, id };
  };
  const record = (topic: string, key: string | null, value: string | null, partition = 0): KafkaProduce => ({
    topic,
    partition,
    key: key === null ? null : Buffer.from(key),
    value: value === null ? null : Buffer.from(value),
  });

  describe('Kafka', () => {
    it('makes a topic as asked, and leaves one alone that is there', async () => {
      const connection = await connect();
      const name = `topic-${randomBytes(4).toString('hex')}`;
      expect(await connection.partitions(name)).toBeUndefined();
      expect(await connection.ensureTopic({ name, partitions: 5 })).toEqual({ partitions: 5, replicationFactor: 1, created: true });
      expect(await connection.ensureTopic({ name, partitions: 9 })).toEqual({ partitions: 5, replicationFactor: 1, created: false });
      expect(await connection.partitions(name)).toBe(5);
    });

    it('says what a cluster does not accept about a topic', async () => {
      const connection = await connect();
      await expect(connection.ensureTopic({ name: 'too-safe', replicationFactor: 3 })).rejects.toMatchObject({
        kind: 'fatal',
        condition: 'topic_config',
        code: 'INVALID_REPLICATION_FACTOR',
      });
      await expect(connection.ensureTopic({ name: 'odd', config: { 'no.such': 'x' } })).rejects.toMatchObject({ code: 'INVALID_CONFIG' });
    });

    it('writes what its own consumer reads, committed transactions only', async () => {
      const connection = await connect();
      const { topic, id } = await newTopics(connection);
      const producer = await connection.transactionalProducer(id);
      for (const [round, outcome] of (['commit', 'abort', 'commit'] as const).entries()) {
        producer.begin();
        await producer.send([
          {
            ...record(topic, `k${round}`, `v${round}`, 1),
            headers: [{ name: 'millrace-timestamp', value: Buffer.from('17') }],
            timestamp: 1000,
          },
          record(topic, `gone${round}`, null, 2),
        ]);
        await producer.send([record(topic, null, `no key ${round}`, 1)]);
        await producer[outcome]();
      }
      const judged = await kafka.tool('org.apache.kafka.tools.consumer.ConsoleConsumer', [
        ...['--bootstrap-server', kafka.plainBrokers.join(','), '--topic', topic, '--from-beginning', '--max-messages', '6'],
        ...['--timeout-ms', '20000', '--isolation-level', 'read_committed'],
        ...['print.key', 'print.offset', 'print.partition', 'print.headers'].flatMap((one) => ['--property', `${one}=true`]),
      ]);
      const ours = await readTopic(kafka.brokers, topic);
      const asPrinted = ours.map(({ partition, offset, headers, key, value }) => {
        const named = Object.entries(headers).map(([name, content]) => `${name}:${content}`);
        return `Partition:${partition}\tOffset:${offset}\t${named.length === 0 ? 'NO_HEADERS' : named.join(',')}\t${key}\t${value}`;
      });
      expect(judged.trim().split('\n').sort()).toEqual(asPrinted.sort());
      expect(ours.map(({ key, value }) => [key, value])).toEqual([
        ['k0', 'v0'],
        [null, 'no key 0'],
        ['k2', 'v2'],
        [null, 'no key 2'],
        ['gone0', null],
        ['gone2', null],
      ]);
      expect(ours[0]?.timestamp).toBe(1000);
    });

    for (const compression of ['gzip', 'snappy', 'lz4'] as const) {
      it(`writes ${compression} that Kafka's own consumer reads`, async () => {
        const connection = await connect();
        const { topic, id } = await newTopics(connection, 1);
        const producer = await connection.transactionalProducer(id, { compression });
        producer.begin();
        const values = Array.from({ length: 2000 }, (_, i) => `value number ${i} is much like the others`);
        await producer.send(values.map((value) => record(topic, null, value)));
        await producer.commit();
        const judged = await kafka.tool('org.apache.kafka.tools.consumer.ConsoleConsumer', [
          ...['--bootstrap-server', kafka.plainBrokers.join(','), '--topic', topic, '--from-beginning', '--max-messages', '2000'],
          ...['--timeout-ms', '20000', '--isolation-level', 'read_committed'],
        ]);
        expect(judged.trim().split('\n')).toEqual(values);
        expect((await readTopic(kafka.brokers, topic)).map(({ value }) => value)).toEqual(values);
      });
    }

    it('refuses a topic that is not there', async () => {
      const connection = await connect();
      const producer = await connection.transactionalProducer('nowhere');
      producer.begin();
      await expect(producer.send([record('nowhere', 'k', 'v')])).rejects.toMatchObject({ kind: 'fatal', condition: 'unknown_topic' });
      await producer.abort();
    });

    it('cuts batches to what the topic takes, and names a record that is too large by itself', async () => {
      const connection = await connect();
      const name = `small-${randomBytes(4).toString('hex')}`;
      await connection.ensureTopic({ name, partitions: 1, config: { 'max.message.bytes': '20000' } });
      const producer = await connection.transactionalProducer(name);
      const values = Array.from({ length: 300 }, (_, i) => `${i}`.padEnd(1000, '.'));
      producer.begin();
      await producer.send(values.map((value) => record(name, null, value)));
      await producer.send([record(name, null, 'after')]);
      await producer.commit();
      producer.begin();
      await expect(producer.send([record(name, null, 'x'.repeat(30_000))])).rejects.toMatchObject({
        kind: 'fatal',
        condition: 'record_too_large',
        message: expect.stringContaining('max.message.bytes'),
      });
      await producer.abort();
      producer.begin();
      await producer.send([record(name, null, 'last')]);
      await producer.commit();
      expect((await readTopic(kafka.brokers, name)).map(({ value }) => value)).toEqual([...values, 'after', 'last']);
    });
  });

  describe('the progress record', () => {
    const progressOf = async (connection: KafkaConnection, progress: string, id: string, value: string): Promise<void> => {
      const producer = await connection.transactionalProducer(id);
      producer.begin();
      await producer.send([record(progress, id, value)]);
      await producer.commit();
    };

    it('is the newest one committed, of its key, however many others were written since', async () => {
      const connection = await connect();
      const { progress, id } = await newTopics(connection);
      expect(await connection.lastProgress(progress, id)).toBeUndefined();
      await progressOf(connection, progress, id, 'old');
      await progressOf(connection, progress, id, 'new');
      const producer = await connection.transactionalProducer('busy');
      producer.begin();
      await producer.send(Array.from({ length: 12_000 }, (_, i) => record(progress, 'busy', `${i}`)));
      await producer.commit();
      producer.begin();
      await producer.send([record(progress, id, 'not committed')]);
      await producer.abort();
      expect(String(await connection.lastProgress(progress, id))).toBe('new');
      expect(await connection.lastProgress(progress, 'nobody')).toBeUndefined();
      expect(await connection.lastProgress('no-such-topic', id)).toBeUndefined();
    });

    it('is seen although another sink has a transaction open that began before it', async () => {
      const connection = await connect();
      const { progress, id } = await newTopics(connection);
      const other = await connection.transactionalProducer(`${id}-other`);
      other.begin();
      await other.send([record(progress, 'other', 'open')]);
      await progressOf(connection, progress, id, 'behind the open one');
      const reading = connection.lastProgress(progress, id);
      setTimeout(() => void other.commit(), 300);
      expect(String(await reading)).toBe('behind the open one');
    });

    it('is an error when a transaction stays open too long', async () => {
      const connection = await connect({ retryForMs: 400 });
      const { progress, id } = await newTopics(connection);
      const other = await connection.transactionalProducer(`${id}-other`);
      other.begin();
      await other.send([record(progress, 'other', 'open')]);
      await expect(connection.lastProgress(progress, id)).rejects.toMatchObject({ kind: 'retriable', condition: 'transaction' });
      await other.abort();
    });

    it('needs a topic of one partition', async () => {
      const connection = await connect();
      const { topic } = await newTopics(connection, 2);
      await expect(connection.lastProgress(topic, 'k')).rejects.toThrow(`progress topic "${topic}" should have one partition, but has 2`);
    });
  });

  describe('a producer', () => {
    it('fences the one before it, whose open transaction is aborted', async () => {
      const [first, second] = [await connect(), await connect()];
      const { topic, progress, id } = await newTopics(first);
      const zombie = await first.transactionalProducer(id);
      zombie.begin();
      await zombie.send([record(topic, 'k', 'of the zombie')]);
      const heir = await second.transactionalProducer(id);
      await expect(zombie.send([record(topic, 'k', 'more of the zombie')])).rejects.toMatchObject({ kind: 'fenced' });
      await expect(zombie.recover()).rejects.toMatchObject({ kind: 'fenced' });
      heir.begin();
      await heir.send([record(topic, 'k', 'of the heir'), record(progress, id, '1')]);
      await heir.commit();
      expect((await readTopic(kafka.brokers, topic)).map(({ value }) => value)).toEqual(['of the heir']);
    });

    it('whose commit comes too late is fenced', async () => {
      const [first, second] = [await connect(), await connect()];
      const { topic, id } = await newTopics(first);
      const zombie = await first.transactionalProducer(id);
      zombie.begin();
      await zombie.send([record(topic, 'k', 'of the zombie')]);
      await second.transactionalProducer(id);
      await expect(zombie.commit()).rejects.toMatchObject({ kind: 'fenced' });
      await expect(zombie.recover()).rejects.toMatchObject({ kind: 'fenced' });
      expect(await readTopic(kafka.brokers, topic)).toEqual([]);
    });

    it('goes on after an abort', async () => {
      const connection = await connect();
      const { topic, id } = await newTopics(connection);
      const producer = await connection.transactionalProducer(id);
      for (const outcome of ['abort', 'recover', 'commit', 'abort', 'commit'] as const) {
        producer.begin();
        await producer.send([record(topic, 'k', outcome)]);
        await producer[outcome]();
      }
      expect((await readTopic(kafka.brokers, topic)).map(({ value }) => value)).toEqual(['commit', 'commit']);
    });

    it('has lost a transaction that was open longer than its timeout', async () => {
      const connection = await connect();
      const { topic, progress, id } = await newTopics(connection);
      const producer = await connection.transactionalProducer(id, { transactionTimeoutMs: 500 });
      producer.begin();
      await producer.send([record(topic, 'k', 'too slow'), record(progress, 'k', 'too slow')]);
      // Waits until the cluster has given the transaction up.
      expect(await connection.lastProgress(progress, 'k')).toBeUndefined();
      await expect(producer.commit()).rejects.toMatchObject({ kind: 'fenced' });
      const again = await connection.transactionalProducer(id);
      again.begin();
      await again.send([record(topic, 'k', 'in time')]);
      await again.commit();
      expect((await readTopic(kafka.brokers, topic)).map(({ value }) => value)).toEqual(['in time']);
    });
  });

  describe('exactly once', { timeout: 180_000 }, () => {
    const TOTAL = 5000;
    const expectEachOnce = async (topic: string): Promise<void> => {
      const values = (await readTopic(kafka.brokers, topic)).map(({ value }) => Number(value));
      expect(values.length).toBe(TOTAL);
      expect([...values].sort((a, b) => a - b)).toEqual(Array.from({ length: TOTAL }, (_, i) => i));
    };

    for (const point of ['between produce and progress', 'between produce and commit', 'during commit', 'between commit and recording']) {
      it(`when the writer is killed ${point}`, async () => {
        const connection = await connect();
        const { topic, progress, id } = await newTopics(connection);
        const args = [kafka.brokers.join(','), id, topic, progress, String(TOTAL)];
        const first = runWriter([...args, point]);
        await first.saying('waiting');
        first.child.kill('SIGKILL');
        await once(first.child, 'exit');
        const second = runWriter(args);
        await second.saying('done');
        await expectEachOnce(topic);
      });
    }

    it('when the broker is killed and comes back', async () => {
      const connection = await connect();
      const { topic, progress, id } = await newTopics(connection);
      let recoveries = 0;
      const producer = await connection.transactionalProducer(id);
      let next = 0;
      let restarted: Promise<void> | undefined;
      while (next < TOTAL) {
        try {
          producer.begin();
          const numbers = Array.from({ length: 100 }, (_, index) => String(next + index));
          const sending = producer.send(numbers.map((one) => record(topic, one, one, Number(one) % 3)));
          if (next === 2000 && restarted === undefined) restarted = kafka.kill().then(() => kafka.start());
          await sending;
          await producer.send([record(progress, id, String(next + 100))]);
          await producer.commit();
          next += 100;
        } catch (error) {
          expect(error).toMatchObject({ kind: 'retriable' });
          recoveries++;
          await recovered(producer);
          next = Number((await connection.lastProgress(progress, id)) ?? 0);
        }
      }
      await restarted;
      await expectEachOnce(topic);
      expect(recoveries).toBeLessThan(5);
    });

    it('when the broker stands still for a while', async () => {
      const connection = await connect({ requestTimeoutMs: 300, retryForMs: 900 });
      const { topic, progress, id } = await newTopics(connection);
      const producer = await connection.transactionalProducer(id);
      let next = 0;
      let failures = 0;
      let paused = false;
      while (next < TOTAL) {
        try {
          producer.begin();
          const numbers = Array.from({ length: 500 }, (_, index) => String(next + index));
          await producer.send(numbers.map((one) => record(topic, one, one, Number(one) % 3)));
          if (next === 2000 && !paused) {
            paused = true;
            kafka.pause();
          }
          await producer.send([record(progress, id, String(next + 500))]);
          await producer.commit();
          next += 500;
        } catch (error) {
          expect(error).toMatchObject({ kind: 'retriable' });
          failures++;
          kafka.resume();
          await recovered(producer);
          next = Number((await (await connect()).lastProgress(progress, id)) ?? 0);
        }
      }
      expect(failures).toBeGreaterThan(0);
      await expectEachOnce(topic);
    });
  });
}

/** Goes on recovering while the cluster is not back yet. */
async function recovered(producer: TransactionalProducer): Promise<void> {
  for (;;) {
    try {
      return await producer.recover();
    } catch (error) {
      expect(error).toMatchObject({ kind: 'retriable' });
    }
  }
}

function runWriter(args: readonly string[]): { child: ReturnType<typeof spawn>; saying(line: string): Promise<void> } {
  const script = fileURLToPath(new URL('kafka-writer.mjs', import.meta.url));
  const child = spawn(process.execPath, [script, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  return {
    child,
    async saying(wanted) {
      for await (const line of createInterface({ input: child.stdout })) if (line === wanted) return;
      throw new Error(`the writer ended without saying "${wanted}"`);
    },
  };
}
