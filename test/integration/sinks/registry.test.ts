import { randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import avsc from 'avsc';
import { afterAll, describe, expect, it } from 'vitest';
import { messageMaker } from '../../../src/sinks/formats/messages.ts';
import { schemaRegistry } from '../../../src/sinks/registry.ts';
import { testAuthority } from '../../support/certificates.ts';
import { startSchemaRegistry } from '../../support/schema-registry.ts';
import { column } from '../../unit/sinks/columns.ts';

const server = await startSchemaRegistry();
if ('skipped' in server) {
  describe.skip(`schema registry (${server.skipped})`, () => {
    it('was not tested', () => undefined);
  });
} else {
  afterAll(() => server.stop());
  const registry = schemaRegistry({ url: server.url, login: null, tls: null });
  const subjectName = (): string => `topic-${randomBytes(4).toString('hex')}-value`;
  const row = (...fields: object[]): object => ({ type: 'record', name: 'envelope', fields: [{ name: 'id', type: 'int' }, ...fields] });

  describe('a schema registry', () => {
    it('gives a schema a number, and gives it back', async () => {
      const subject = subjectName();
      await registry.probe();
      expect(await registry.exists(subject)).toBe(false);
      const id = await registry.register(subject, row());
      expect(await registry.exists(subject)).toBe(true);
      expect(await registry.register(subject, row())).toBe(id);
      expect(await registry.getById(id)).toEqual(row());
      await expect(registry.getById(987_654)).rejects.toMatchObject({ failure: 'not_found', status: 404 });
    });

    it('refuses what its level of compatibility does not allow, and says so before', async () => {
      const subject = subjectName();
      expect(await registry.checkCompatibility(subject, row())).toEqual({ compatible: true });
      await registry.register(subject, row());
      await registry.setCompatibility(subject, 'BACKWARD');
      const optional = row({ name: 'note', type: ['null', 'string'], default: null });
      const required = row({ name: 'note', type: 'string' });
      expect(await registry.checkCompatibility(subject, optional)).toEqual({ compatible: true });
      expect(await registry.checkCompatibility(subject, required)).toMatchObject({ compatible: false });
      await expect(registry.register(subject, required)).rejects.toMatchObject({ failure: 'incompatible', status: 409 });
      expect(await registry.register(subject, optional)).toBeGreaterThan(0);
    });

    it('takes the schemas of sinks, and readers find them by the number in a message', async () => {
      const made = messageMaker({
        columns: [column('id', 'int4', false), column('price', 'numeric'), column('at', 'timestamptz')],
        key: [0],
        keyFormat: { kind: 'avro' },
        valueFormat: { kind: 'avro' },
        envelope: 'debezium',
      });
      if ('problem' in made || made.keySchema === undefined || made.valueSchema === undefined) throw new Error('no schemas');
      const subject = subjectName();
      const ids = {
        key: await registry.register(`${subject}-key`, made.keySchema),
        value: await registry.register(subject, made.valueSchema),
      };
      const [message] = made.messages({ before: null, after: ['7', '2.5', '2024-03-31 01:30:00+01'] }, ids);
      const value = message?.value ?? Buffer.alloc(0);
      const schema = await registry.getById(value.readInt32BE(1));
      const read: unknown = avsc.Type.forSchema(schema as avsc.Schema, { wrapUnions: false }).fromBuffer(value.subarray(5));
      expect(read).toMatchObject({ before: null, after: { id: 7, at: 1_711_845_000_000_000 } });
    });

    it('refuses what is no schema', async () => {
      await expect(registry.register(subjectName(), { type: 'no such type' })).rejects.toMatchObject({ failure: 'invalid_schema' });
    });
  });
}

describe('the client of a schema registry', () => {
  const listening = async (of: ReturnType<typeof createServer>): Promise<number> => {
    await new Promise<void>((resolve) => of.listen(0, '127.0.0.1', resolve));
    return (of.address() as AddressInfo).port;
  };

  it('logs in, over TLS that it has checked', async () => {
    const authority = testAuthority();
    const { cert, key } = authority.issue('localhost');
    const secured = createTlsServer({ cert, key }, (request, response) => {
      const login = Buffer.from((request.headers.authorization ?? '').replace('Basic ', ''), 'base64').toString();
      response.writeHead(login === 'miller:water' ? 200 : 401).end(login === 'miller:water' ? '[]' : '{"message":"Unauthorized"}');
    });
    const url = `https://localhost:${await listening(secured)}`;
    const tls = { ca: authority.cert, verify: true };
    const login = { username: 'miller', password: 'water' };
    await schemaRegistry({ url, login, tls }).probe();
    await expect(schemaRegistry({ url, login: null, tls }).probe()).rejects.toMatchObject({
      failure: 'authentication',
      message: 'cannot list subjects in the schema registry: Unauthorized (HTTP 401)',
    });
    await expect(schemaRegistry({ url, login, tls: { verify: true } }).probe()).rejects.toMatchObject({ failure: 'unreachable' });
    secured.close();
    authority.remove();
  });

  it('does not wait for ever, and asks again what failed', async () => {
    let silent = true;
    const moody = createServer((_, response) => {
      if (!silent) response.end('{"id":5}');
    });
    const url = `http://127.0.0.1:${await listening(moody)}`;
    const client = schemaRegistry({ url, login: null, tls: null, timeoutMs: 100 });
    await expect(client.register('s', {})).rejects.toThrow('no answer within 100 ms');
    silent = false;
    expect(await client.register('s', {})).toBe(5);
    moody.closeAllConnections();
    moody.close();
    await expect(client.probe()).rejects.toMatchObject({ failure: 'unreachable', message: expect.stringContaining('ECONNREFUSED') });
  });
});
