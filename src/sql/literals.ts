/**
 * The values of literals that need more than their own characters: E'' escapes and decode().
 * Invariant: the value is what Postgres would read, or a LiteralError says why there is none.
 */

/** Becomes a MillraceError where the position is known. */
export class LiteralError extends Error {
  readonly condition: 'syntax_error' | 'invalid_option';
  constructor(condition: 'syntax_error' | 'invalid_option', message: string) {
    super(message);
    this.name = 'LiteralError';
    this.condition = condition;
  }
}

const escapeSequence = /''|\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|x([0-9A-Fa-f]{1,2})|([0-7]{1,3})|([\s\S]))/g;
const controls: Readonly<Record<string, string>> = { b: '\b', f: '\f', n: '\n', r: '\r', t: '\t' };

/** The value of the inside of an E'..' literal. */
export function readEscapes(source: string): string {
  // Octal and hex escapes are bytes and can be parts of one character, so the parts are joined as bytes; the text between two of them
  // is kept whole, because the halves of a surrogate pair may be escaped one by one.
  const parts: Buffer[] = [];
  let text = '';
  let from = 0;
  for (const found of source.matchAll(escapeSequence)) {
    const [whole, short, long, hex, octal, single] = found;
    text += source.slice(from, found.index);
    from = found.index + whole.length;
    if (hex === undefined && octal === undefined) {
      text += whole === "''" ? "'" : (characterOf(short ?? long) ?? controlOf(single ?? ''));
    } else {
      parts.push(characterBytes(text), Buffer.of(Number.parseInt(hex ?? octal ?? '0', hex === undefined ? 8 : 16) & 0xff));
      text = '';
    }
  }
  parts.push(characterBytes(text + source.slice(from)));
  return utf8(Buffer.concat(parts), 'syntax_error');
}

function characterOf(digits: string | undefined): string | undefined {
  if (digits === undefined) return undefined;
  const code = Number.parseInt(digits, 16);
  if (code > 0x10ffff) throw new LiteralError('syntax_error', 'invalid Unicode escape value');
  return String.fromCodePoint(code);
}

function controlOf(letter: string): string {
  if (letter === 'u' || letter === 'U') throw new LiteralError('syntax_error', 'invalid Unicode escape');
  return controls[letter] ?? letter;
}

function characterBytes(text: string): Buffer {
  if (/\p{Surrogate}/u.test(text)) throw new LiteralError('syntax_error', 'invalid Unicode surrogate pair');
  return Buffer.from(text);
}

/** The text that decode(encoded, format) holds. */
export function decodeBinary(encoded: string, format: string): string {
  switch (format.toLowerCase()) {
    case 'base64': {
      const wrong = /[^A-Za-z0-9+/= \t\n\r]/.exec(encoded);
      if (wrong !== null) throw new LiteralError('invalid_option', `invalid symbol "${wrong[0]}" found while decoding base64 sequence`);
      const symbols = encoded.replace(/[ \t\n\r]/g, '');
      if (!/^(?:[^=]{4})*(?:[^=]{2}==|[^=]{3}=)?$/.test(symbols)) throw new LiteralError('invalid_option', 'invalid base64 end sequence');
      return utf8(Buffer.from(symbols, 'base64'), 'invalid_option');
    }
    case 'hex': {
      const digits = encoded.replace(/[ \t\n\r]/g, '');
      const wrong = /[^0-9A-Fa-f]/.exec(digits);
      if (wrong !== null) throw new LiteralError('invalid_option', `invalid hexadecimal digit: "${wrong[0]}"`);
      if (digits.length % 2 === 1) throw new LiteralError('invalid_option', 'invalid hexadecimal data: odd number of digits');
      return utf8(Buffer.from(digits, 'hex'), 'invalid_option');
    }
    default:
      throw new LiteralError('invalid_option', `unrecognized encoding: "${format}"`);
  }
}

function utf8(bytes: Buffer, condition: 'syntax_error' | 'invalid_option'): string {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new LiteralError(condition, 'invalid byte sequence for encoding "UTF8"');
  }
  if (text.includes('\0')) throw new LiteralError(condition, 'invalid byte sequence for encoding "UTF8": 0x00');
  return text;
}
