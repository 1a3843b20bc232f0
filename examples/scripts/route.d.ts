// Types of a routing script, for editors. Put this beside the script and write as its first line
//
//     /// <reference path="route.d.ts" />
//
// and `// @ts-check` as its second.

/** What can be posted with a connection: what JSON can say. Anything else is a `DataCloneError`. */
type Message =
  | null
  | boolean
  | number
  | string
  | readonly Message[]
  | { readonly [key: string]: Message };

/** The security context of whoever made the socket at the client's end. */
interface PeerContext {
  readonly user: string;
  readonly role: string;
  readonly type: string;
  readonly level: string;
  /** All of it: `user:role:type:level`. */
  readonly label: string;
}

/** What a TLS client says first; behind a proxy that has ended TLS, what its PROXY header announces of that. */
interface ClientHello {
  /**
   * The name that it asks for, in lower case; null if it names none. Reading it throws a
   * `NotReadableError` if it is encrypted.
   */
  readonly serverName: string | null;
  /** The protocols that it offers, in its order; from a proxy, the one that was agreed on. Empty if there is none. */
  readonly alpn: string[];
}

/** The head of the first HTTP/1 request. */
interface HttpHead {
  readonly method: string;
  /** The target as it was sent. */
  readonly target: string;
  /** The path, without dot segments and escapes of letters and digits; `é` is `%C3%A9`. null for `OPTIONS *` and `CONNECT`. */
  readonly path: string | null;
  /** The host in lower case, without port; null if there is none. Two of them throw a `NotReadableError`. */
  readonly host: string | null;
  /** All values of a field, with `, ` between them; null if it is not there. */
  header(name: string): string | null;
  /** The first value of a cookie. */
  cookie(name: string): string | null;
  /** The first value of a parameter, decoded. */
  query(name: string): string | null;
}

/** A client's connection, of which not one byte was read. */
interface Connection {
  /** The client's address; null on a Unix-domain socket. */
  readonly remoteAddress: string | null;
  readonly remotePort: number | null;
  readonly localAddress: string | null;
  readonly localPort: number | null;
  /** Name of the listener. */
  readonly listener: string;
  /** null without labelled networking. */
  readonly peerContext: PeerContext | null;
  /** Number of the user at the other end of a Unix-domain socket, such as `"1000"`; null on others. */
  readonly peerUser: string | null;
  /** null for a client that speaks TLS neither here nor with a proxy that announces it. */
  tls(): Promise<ClientHello | null>;
  /** null for a client whose request is hidden by TLS or HTTP/2. */
  http(): Promise<HttpHead | null>;
  /** Turns the client away: a status from 400 to 599, a TCP reset, or a close without a word. */
  reject(how: number | "reset" | "close"): void;
}

interface Poster {
  readonly name: string;
  /** Posts a connection, once, with a message. */
  postMessage(message: Message | undefined, transfer: readonly [Connection]): void;
}

/** A place for a worker; it stays when the process in it is replaced. What is posted to one that is not ready waits. */
interface Worker extends Poster {
  readonly ready: boolean;
  /** Those that it holds, and those on their way. */
  readonly connections: number;
}

/** `postMessage` of a pool posts to the worker that its `balance` chooses. */
interface Pool extends Poster {
  readonly workers: readonly Worker[];
  /** The same worker for the same key; null if there is none. */
  workerFor(key: string): Worker | null;
}

/** The pools of the configuration, by their names. */
declare const pools: { readonly [name: string]: Pool };

/** Called with each connection. Posts it, rejects it, or leaves it to the `[[route]]`s. */
declare let onconnection: ((event: { readonly connection: Connection }) => void | Promise<void>) | null;

/** FNV-1a, 32 bits, over UTF-8. */
declare function hash(text: string): number;

/** Whether an address is in a network, such as `"10.0.0.0/8"`. */
declare function inNetwork(address: string | null, network: string): boolean;

/** To the router's log. */
declare const console: {
  debug(...values: unknown[]): void;
  log(...values: unknown[]): void;
  info(...values: unknown[]): void;
  warn(...values: unknown[]): void;
  error(...values: unknown[]): void;
};
