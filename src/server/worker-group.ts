/**
 * All proxy workers, asked and told together by the main process.
 * Invariant: every question ends: by the answers of all workers that were asked, or without those that ended, hang or are too late.
 */
import type { ChildMessage, ParentMessage } from '../config.ts';
import type { WorkerEntry } from '../wire/admin/messages.ts';
import type { WorkerCommand, WorkerReport } from '../wire/pool/report.ts';
import type { Supervised } from './supervise.ts';

export interface CommandResult {
  /** Whether any worker knew what was named. */
  readonly found: boolean;
  /** Numbers of the workers that have not answered. */
  readonly missing: readonly number[];
  /** One line each. */
  readonly errors: readonly string[];
}

/** A worker says something every second. One that is silent for longer than this hangs. */
const silence = 5_000;

type Answer = { readonly report: WorkerReport } | { readonly found: boolean } | { readonly error: string } | null;

interface Question {
  readonly worker: number;
  readonly settle: (answer: Answer) => void;
}

export class WorkerGroup {
  readonly #workers: readonly Supervised[];
  readonly #questions = new Map<number, Question>();
  readonly #heard: number[] = [];
  /** What PAUSE and DISABLE have left: a worker that is started again is told. */
  #pausedAll = false;
  readonly #paused = new Set<string>();
  readonly #disabled = new Set<string>();
  #lastId = 0;

  /** `workers` may grow afterwards; worker number n is at index n - 1. */
  constructor(workers: readonly Supervised[]) {
    this.#workers = workers;
  }

  get pausedAll(): boolean {
    return this.#pausedAll;
  }
  get paused(): readonly string[] {
    return [...this.#paused];
  }
  get disabled(): readonly string[] {
    return [...this.#disabled];
  }

  /** A message of worker `number`. */
  received(number: number, message: ChildMessage): void {
    this.#heard[number] = Date.now();
    if (message.type === 'ready') this.#remind(number);
    else if (message.type === 'report') this.#settle(message.id, { report: message.report });
    else if (message.type === 'outcome') this.#settle(message.id, message.outcome);
  }

  /** Worker `number` has ended. */
  ended(number: number): void {
    for (const [id, question] of this.#questions) if (question.worker === number) this.#settle(id, null);
  }

  async reports(deadline: number): Promise<readonly WorkerEntry[]> {
    return await Promise.all(
      this.#workers.map(async (worker, index) => {
        const answer = await this.#ask(index + 1, { type: 'report' }, deadline);
        return {
          number: index + 1,
          pid: worker.pid() ?? 0,
          ready: worker.isReady(),
          restarts: worker.restarts(),
          report: answer !== null && 'report' in answer ? answer.report : null,
        };
      }),
    );
  }

  /** Tells all workers. Without a deadline it takes as long as the workers take, but for those that hang. */
  async command(command: WorkerCommand, deadline?: number): Promise<CommandResult> {
    this.#remember(command);
    const answers = await Promise.all(this.#workers.map((_, index) => this.#ask(index + 1, { type: 'command', command }, deadline)));
    return {
      found: answers.some((answer) => answer !== null && 'found' in answer && answer.found),
      missing: answers.flatMap((answer, index) => (answer === null ? [index + 1] : [])),
      errors: answers.flatMap((answer, index) => (answer !== null && 'error' in answer ? [`worker ${index + 1}: ${answer.error}`] : [])),
    };
  }

  /** Tells all workers something that has no answer. */
  tell(message: Extract<ParentMessage, { type: 'cancel-here' | 'close-door' }>): void {
    for (const worker of this.#workers) worker.tell(message);
  }

  #ask(
    number: number,
    question: { readonly type: 'report' } | { readonly type: 'command'; readonly command: WorkerCommand },
    deadline: number | undefined,
  ): Promise<Answer> {
    return new Promise((resolve) => {
      const id = ++this.#lastId;
      const late = (): void => this.#settle(id, null);
      const asked = Date.now();
      const watch = (): void => {
        if (Date.now() - Math.max(this.#heard[number] ?? 0, asked) > silence) late();
      };
      const timer = deadline === undefined ? setInterval(watch, 1_000) : setTimeout(late, deadline);
      const settle = (answer: Answer): void => {
        clearTimeout(timer);
        resolve(answer);
      };
      this.#questions.set(id, { worker: number, settle });
      if (this.#workers[number - 1]?.tell({ ...question, id }) !== true) late();
    });
  }

  #settle(id: number, answer: Answer): void {
    const question = this.#questions.get(id);
    this.#questions.delete(id);
    question?.settle(answer);
  }

  #remember(command: WorkerCommand): void {
    switch (command.command) {
      case 'pause':
      case 'kill':
        if (command.database === null) this.#pausedAll = true;
        else this.#paused.add(command.database);
        break;
      case 'resume':
        if (command.database === null) {
          this.#pausedAll = false;
          this.#paused.clear();
        } else this.#paused.delete(command.database);
        break;
      case 'disable':
        this.#disabled.add(command.database);
        break;
      case 'enable':
        this.#disabled.delete(command.database);
        break;
    }
  }

  #remind(number: number): void {
    const commands: WorkerCommand[] = [
      ...(this.#pausedAll ? [{ command: 'pause', database: null } as const] : []),
      ...[...this.#paused].map((database) => ({ command: 'pause', database }) as const),
      ...[...this.#disabled].map((database) => ({ command: 'disable', database }) as const),
    ];
    for (const command of commands) void this.#ask(number, { type: 'command', command }, silence);
  }
}
