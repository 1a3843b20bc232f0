// As examples/scripts/security-context; and whoever has no label goes a way of their own.
onconnection = ({ connection }) => {
  const type = connection.peerContext?.type;
  if (type === undefined) return pools.app.postMessage(null, [connection]);
  const pool = type === 'staff_client_t' ? pools.staff : pools.guest;
  pool.postMessage({ type }, [connection]);
};
