// So many visitors of a hundred.
const PERCENT = 5;

onconnection = async ({ connection }) => {
  const request = await connection.http();
  // Who asks for it gets it: `canary=always` or `canary=never`.
  const wish = request?.cookie('canary');
  const visitor = request?.cookie('session') ?? connection.remoteAddress;
  const chosen = wish === 'always' || (wish !== 'never' && hash(String(visitor)) % 100 < PERCENT);
  const pool = chosen ? pools.canary : pools.stable;
  pool.postMessage({ canary: chosen }, [connection]);
};
