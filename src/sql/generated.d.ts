/** Types of the parser that peggy generates from grammar/millrace.peggy (the generated file itself is plain JavaScript). */
declare module '*/generated/millrace-parser.js' {
  /** Returns the AST of one statement, or throws `SyntaxError`. The options are those of `GrammarOptions` in parse.ts. */
  export function parse(input: string, options: object): unknown;
  class GrammarError extends Error {
    /** Offset of the first token that no rule could accept. */
    readonly location: { readonly start: { readonly offset: number } };
  }

  export { GrammarError as SyntaxError };
}
