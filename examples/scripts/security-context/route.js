onconnection = ({ connection }) => {
  // null without labelled networking: nobody is staff for want of a label.
  const type = connection.peerContext?.type;
  const pool = type === 'staff_client_t' ? pools.staff : pools.guest;
  pool.postMessage({ type: type ?? null }, [connection]);
};
