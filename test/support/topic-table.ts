/** A topic as a table of a consumer that keeps the newest value of each key. */
import { readTopic, type TopicRecord } from './kafka-topic.ts';

export interface TopicContent {
  readonly records: readonly TopicRecord[];
  /** Key as JSON text -> value as JSON text; keys whose newest record is a tombstone are not in it. */
  readonly table: ReadonlyMap<string, string>;
}

/** What committed records of a topic say, partition by partition. */
export async function topicContent(brokers: readonly string[], topic: string): Promise<TopicContent> {
  const records = await readTopic(brokers, topic);
  const table = new Map<string, string>();
  for (const { key, value } of records) {
    if (value === null) table.delete(key ?? '');
    else table.set(key ?? '', value);
  }
  return { records, table };
}

/** As an object, by the first key column, for comparing with what a test writes down. */
export async function topicTable(brokers: readonly string[], topic: string): Promise<Record<string, unknown>> {
  const { table } = await topicContent(brokers, topic);
  return Object.fromEntries([...table].map(([key, value]) => [String(Object.values(JSON.parse(key) as object)[0]), JSON.parse(value)]));
}
