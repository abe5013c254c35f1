// aedes for tests: argument 1 is the port on 127.0.0.1. NODE_PATH says where the package is.
const net = require('node:net')
const { Aedes } = require('aedes')

async function main () {
  const broker = await Aedes.createBroker()
  net.createServer(broker.handle).listen(Number(process.argv[2]), '127.0.0.1')
}

main()
