/**
 * Markers: logical messages by which one who reads the stream knows that it has come to a point.
 * Invariant: when the marker is in the stream, so is every transaction that had committed before it was written.
 */
import type { Client } from 'pg';

/** Its commit puts everything before it on disk, so that the stream comes to it. */
export async function writeMarker(client: Client, prefix: string, content: string): Promise<void> {
  await client.query("SELECT set_config('synchronous_commit', 'local', true), pg_catalog.pg_logical_emit_message(true, $1, $2)", [
    prefix,
    content,
  ]);
}
