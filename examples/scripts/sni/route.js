const sites = new Map([
  ['shop.example.org', pools.shop],
  ['blog.example.org', pools.blog],
]);

onconnection = async ({ connection }) => {
  const hello = await connection.tls();
  const pool = hello?.serverName && sites.get(hello.serverName);
  // access_denied to a TLS client, 421 to one that speaks plain HTTP.
  if (!pool) return connection.reject(421);
  pool.postMessage({ alpn: hello.alpn }, [connection]);
};
