import com.hivemq.embedded.EmbeddedExtension;
import com.hivemq.embedded.EmbeddedHiveMQ;
import com.hivemq.extension.sdk.api.ExtensionMain;
import com.hivemq.extension.sdk.api.auth.SimpleAuthenticator;
import com.hivemq.extension.sdk.api.parameter.ExtensionStartInput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStartOutput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStopInput;
import com.hivemq.extension.sdk.api.parameter.ExtensionStopOutput;
import com.hivemq.extension.sdk.api.services.Services;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.file.Path;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;

/**
 * HiveMQ CE for tests: lets everybody in, and forgets everything on request.
 *
 * Arguments: the folder with conf, data and extensions, and a port. Whoever connects to the port
 * gets a byte once all sessions and retained messages are gone.
 */
public class HiveMq {
    static class LetIn implements ExtensionMain {
        public void extensionStart(ExtensionStartInput input, ExtensionStartOutput output) {
            SimpleAuthenticator everybody = (client, answer) -> answer.authenticateSuccessfully();
            Services.securityRegistry().setAuthenticatorProvider(client -> everybody);
        }

        public void extensionStop(ExtensionStopInput input, ExtensionStopOutput output) {}
    }

    static void forget() throws Exception {
        Queue<String> clients = new ConcurrentLinkedQueue<>();
        Services.clientService()
            .iterateAllClients((context, session) -> clients.add(session.getClientIdentifier()))
            .get();
        for (String client : clients) {
            Services.clientService().invalidateSession(client).get();
        }
        Services.retainedMessageStore().clear().get();
    }

    public static void main(String[] arguments) throws Exception {
        Path folder = Path.of(arguments[0]);
        EmbeddedExtension letIn = EmbeddedExtension.builder()
            .withId("let-in").withName("Let everybody in").withVersion("1")
            .withExtensionMain(new LetIn()).build();
        EmbeddedHiveMQ.builder()
            .withConfigurationFolder(folder.resolve("conf"))
            .withDataFolder(folder.resolve("data"))
            .withExtensionsFolder(folder.resolve("extensions"))
            .withEmbeddedExtension(letIn)
            .build().start().join();
        InetAddress here = InetAddress.getByName("127.0.0.1");
        try (ServerSocket server = new ServerSocket(Integer.parseInt(arguments[1]), 8, here)) {
            while (true) {
                try (Socket client = server.accept()) {
                    forget();
                    client.getOutputStream().write('.');
                }
            }
        }
    }
}
