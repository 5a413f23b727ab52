// A writer that the test kills: writes numbers to a topic in transactions, going on where its progress record says.
// Arguments: brokers, transactional id, topic, progress topic, how many numbers, where to wait for death.
import { connectKafka } from '../../../dist/sinks/kafka/client.js';
import { partitionFor } from '../../../dist/sinks/kafka/partition.js';

const [brokers, transactionalId, topic, progressTopic, total, waitAt] = process.argv.slice(2);
const BATCH = 500;
const kafka = await connectKafka({ brokers: brokers.split(','), tls: null, sasl: null });
const partitions = await kafka.partitions(topic);
const producer = await kafka.transactionalProducer(transactionalId);
let next = Number((await kafka.lastProgress(progressTopic, transactionalId)) ?? 0);
process.stdout.write(`from ${next}\n`);

async function reached(point) {
  if (point !== waitAt) return;
  process.stdout.write('waiting\n');
  await new Promise((resolve) => setTimeout(resolve, 600_000));
}

for (let written = 0; next < Number(total); written++) {
  producer.begin();
  const keys = Array.from({ length: BATCH }, (_, index) => Buffer.from(String(next + index)));
  await producer.send(keys.map((key) => ({ topic, partition: partitionFor(key, partitions), key, value: key })));
  if (written === 2) await reached('between produce and progress');
  next += BATCH;
  await producer.send([{ topic: progressTopic, partition: 0, key: Buffer.from(transactionalId), value: Buffer.from(String(next)) }]);
  if (written === 2) await reached('between produce and commit');
  const committing = producer.commit();
  if (written === 2) await reached('during commit');
  await committing;
  if (written === 2) await reached('between commit and recording');
}
await kafka.close();
process.stdout.write('done\n');
