/** What `millrace serve` is told: flags, environment and config file put together by cli.ts. Nothing here does IO. */
import type { CopySettings, ServerAddress } from './config.ts';
import type { HostPort } from './config-loading.ts';
import type { LoadedProxy, ProxySource } from './proxy-settings.ts';

export interface ServeConfig {
  readonly listen: HostPort;
  readonly http: HostPort;
  /** undefined: the embedded PostgreSQL. */
  readonly upstream: ServerAddress | undefined;
  readonly dataDir: string;
  readonly workers: number;
  readonly copies: CopySettings;
  readonly proxy: LoadedProxy;
  /** Where that came from: a reload reads it again. */
  readonly proxySource: ProxySource;
}
