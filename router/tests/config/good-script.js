onconnection = ({ connection }) => {
  if (inNetwork(connection.remoteAddress, "10.0.0.0/8")) pools.gold.postMessage(null, [connection]);
};
