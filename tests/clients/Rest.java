// Sample, reconstruct and score over the Open Inference Protocol, with binary tensors:
// java Rest.java URL SEED ROWS.bin DATATYPE SHAPE OUT, where SHAPE is that of the rows, "9,28,28".
import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;

public class Rest {
    static final String HEADER = "Inference-Header-Content-Length";
    static final HttpClient CLIENT = HttpClient.newHttpClient();

    static void infer(String url, String model, String inputs, String parameters, byte[] rows, Path out) throws Exception {
        byte[] json = ("{\"inputs\": [" + inputs + "], \"parameters\": {\"binary_data_output\": true" + parameters + "}}").getBytes();
        var body = new ByteArrayOutputStream();
        body.writeBytes(json);
        body.writeBytes(rows);
        var request = HttpRequest.newBuilder(URI.create(url + "/v2/models/" + model + "/infer"))
            .header(HEADER, "" + json.length).POST(BodyPublishers.ofByteArray(body.toByteArray())).build();
        var answer = CLIENT.send(request, BodyHandlers.ofByteArray());
        if (answer.statusCode() != 200) throw new Exception(answer.statusCode() + ": " + new String(answer.body()));
        int start = Integer.parseInt(answer.headers().firstValue(HEADER).get());
        byte[] tensors = java.util.Arrays.copyOfRange(answer.body(), start, answer.body().length);
        Files.write(out.resolve(model + ".bin"), tensors);  // the outputs, one after another
    }

    public static void main(String[] args) throws Exception {
        byte[] rows = Files.readAllBytes(Path.of(args[2]));
        Path out = Path.of(args[5]);
        String x = "{\"name\": \"x\", \"datatype\": \"" + args[3] + "\", \"shape\": [" + args[4]
            + "], \"parameters\": {\"binary_data_size\": " + rows.length + "}}";
        infer(args[0], "sample", "", ", \"num_samples\": 5, \"seed\": " + args[1], new byte[0], out);
        infer(args[0], "reconstruct", x, "", rows, out);
        infer(args[0], "score", x, ", \"num_samples\": 2, \"seed\": " + args[1], rows, out);
    }
}
