// Called by nobody.
function onconnect({ connection }) {
  pools.app.postMessage(1, [connection]);
}
