/**
 * What a server says without being asked: notices, notifications, changed parameters.
 * Invariant: none of it belongs to a call, so none of it can disturb the order of replies.
 */
import { parseServerMessage, type ServerMessageFields } from './postgres-error.ts';
import { readCString } from './reply-parts.ts';

export class Announcements {
  readonly parameters = new Map<string, string>();
  readonly noticeListeners: ((fields: ServerMessageFields) => void)[] = [];
  readonly notificationListeners: ((channel: string, payload: string) => void)[] = [];

  /** NoticeResponse ('N'), ParameterStatus ('S') or NotificationResponse ('A'): its body. */
  take(type: number, buffer: Buffer, start: number, end: number): void {
    if (type === 0x4e) {
      const fields = parseServerMessage(buffer, start, end);
      for (const listener of this.noticeListeners) listener(fields);
    } else if (type === 0x53) {
      const name = readCString(buffer, start);
      this.parameters.set(name, readCString(buffer, start + Buffer.byteLength(name) + 1));
    } else {
      const channel = readCString(buffer, start + 4);
      const payload = readCString(buffer, start + 4 + Buffer.byteLength(channel) + 1);
      for (const listener of this.notificationListeners) listener(channel, payload);
    }
  }
}
