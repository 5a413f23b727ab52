import { createServer } from 'node:net';
import { afterAll, describe, expect, it } from 'vitest';
import { connectKafka, type KafkaAddress } from '../../../src/sinks/kafka/client.ts';
import { testAuthority } from '../../support/certificates.ts';
import { freePorts } from '../../support/java.ts';
import { KAFKA_USER, startKafka } from '../../support/kafka.ts';
import { readTopic } from '../../support/kafka-topic.ts';

const kafka = await startKafka({ sasl: true, tls: true });
if ('skipped' in kafka) {
  describe.skip(`Kafka with TLS and login (${kafka.skipped})`, () => {
    it('was not tested', () => undefined);
  });
} else {
  afterAll(() => kafka.stop());
  const tls = { ca: kafka.tls?.ca ?? '', verify: true };
  const address = (changed: Partial<KafkaAddress>): KafkaAddress => ({
    brokers: kafka.brokers,
    tls,
    sasl: { mechanism: 'PLAIN', ...KAFKA_USER },
    connectTimeoutMs: 5000,
    requestTimeoutMs: 5000,
    ...changed,
  });
  const attempt = async (changed: Partial<KafkaAddress>): Promise<void> => (await connectKafka(address(changed))).close();

  describe('a login to Kafka', () => {
    for (const mechanism of ['PLAIN', 'SCRAM-SHA-256', 'SCRAM-SHA-512'] as const) {
      it(`with ${mechanism} over TLS lets write`, async () => {
        const connection = await connectKafka(address({ sasl: { mechanism, ...KAFKA_USER } }));
        await connection.ensureTopic({ name: mechanism, partitions: 1 });
        const producer = await connection.transactionalProducer(mechanism);
        producer.begin();
        await producer.send([{ topic: mechanism, partition: 0, key: null, value: Buffer.from('in') }]);
        await producer.commit();
        await connection.close();
        expect((await readTopic(kafka.plainBrokers, mechanism)).map(({ value }) => value)).toEqual(['in']);
      });

      it(`with ${mechanism} and a wrong password is refused as such`, async () => {
        await expect(attempt({ sasl: { mechanism, username: KAFKA_USER.username, password: 'wine' } })).rejects.toMatchObject({
          kind: 'fatal',
          condition: 'authentication',
        });
      });
    }

    it('with a certificate of its own', async () => {
      const client = kafka.tls?.client;
      await attempt({ tls: { ...tls, cert: client?.cert ?? '', key: client?.key ?? '' } });
    });

    it('to a broker whose certificate is of another authority is refused, unless it is not to be verified', async () => {
      const other = testAuthority('Another authority');
      await expect(attempt({ tls: { ca: other.cert, verify: true } })).rejects.toMatchObject({ kind: 'fatal', condition: 'tls' });
      await expect(attempt({ tls: { verify: true } })).rejects.toMatchObject({ kind: 'fatal', condition: 'tls' });
      await attempt({ tls: { verify: false } });
      other.remove();
    });

    it('without TLS to a broker with it, and with TLS to a broker without it, says so', async () => {
      await expect(attempt({ tls: null })).rejects.toThrow('the broker closed the connection; it may want TLS');
      await expect(attempt({ brokers: kafka.plainBrokers, sasl: null })).rejects.toMatchObject({ condition: 'tls' });
    });

    it('without a login where one is needed is refused', async () => {
      await expect(attempt({ sasl: null })).rejects.toThrow('the broker closed the connection; it may want a login');
    });

    it('to a port nobody listens on says so, and names it', async () => {
      const [port = 0] = await freePorts(1);
      await expect(attempt({ brokers: [`127.0.0.1:${port}`] })).rejects.toMatchObject({
        kind: 'retriable',
        condition: 'unreachable',
        message: expect.stringContaining(`127.0.0.1:${port}`),
      });
    });

    it('takes the broker that is there', async () => {
      const [port = 0] = await freePorts(1);
      await attempt({ brokers: [`127.0.0.1:${port}`, ...kafka.brokers] });
    });

    it('to something that does not answer gives up', async () => {
      const silent = createServer((socket) => socket.on('error', () => undefined));
      await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve));
      const at = silent.address();
      const port = typeof at === 'object' && at !== null ? at.port : 0;
      const quick = { brokers: [`127.0.0.1:${port}`], connectTimeoutMs: 300, requestTimeoutMs: 300 };
      await expect(attempt({ ...quick, tls: null, sasl: null })).rejects.toMatchObject({ kind: 'retriable', condition: 'timeout' });
      await expect(attempt(quick)).rejects.toMatchObject({ kind: 'retriable' });
      silent.close();
    });

    it('needs brokers that can be read', async () => {
      await expect(attempt({ brokers: ['host:port'] })).rejects.toThrow('"host:port" is not a broker: write host:port');
    });
  });
}
