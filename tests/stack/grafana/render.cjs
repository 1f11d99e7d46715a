// What a panel shows: Prometheus' answers through the panel's transformations and field settings, by Grafana's library.
//
// Reads [{panel, answers: {refId: [sample, ...]}}] from standard input, and writes [{title, columns, rows}] with the texts
// of the cells. An answer is the result of an instant query; it becomes a frame as Grafana's data source makes it.
const data = require('@grafana/data');

// Transformations look for Grafana's page around them; loading the library must not find one.
globalThis.window = globalThis;
globalThis.navigator ??= { language: 'en-US', languages: ['en-US'] };

const TRANSFORMERS = ['mergeTransformer', 'organizeFieldsTransformer', 'sortByTransformer', 'convertFieldTypeTransformer', 'groupingToMatrixTransformer'];
const PROCESSORS = {
  unit: data.unitOverrideProcessor,
  decimals: data.numberOverrideProcessor,
  min: data.numberOverrideProcessor,
  max: data.numberOverrideProcessor,
  mappings: data.valueMappingsOverrideProcessor,
  thresholds: data.thresholdsOverrideProcessor,
  color: data.identityOverrideProcessor,
  displayName: data.displayNameOverrideProcessor,
  'custom.cellOptions': data.identityOverrideProcessor,
};

data.standardTransformersRegistry.setInit(() =>
  TRANSFORMERS.map((name) => data.standardTransformers[name]).map((transformation) => ({
    id: transformation.id,
    name: transformation.name,
    transformation: () => Promise.resolve(transformation),
    editor: () => null,
    imageDark: '',
    imageLight: '',
  }))
);
const settings = new data.FieldConfigOptionsRegistry(() =>
  Object.entries(PROCESSORS).map(([id, process]) => ({
    id,
    path: id.replace('custom.', ''),
    isCustom: id.startsWith('custom.'),
    name: id,
    process,
    shouldApply: () => true,
    editor: () => null,
    override: () => null,
  }))
);

function tableFrame(refId, samples, alone) {
  const labels = [...new Set(samples.flatMap(({ metric }) => Object.keys(metric)))].sort();
  const field = (name, type, values) => ({ name, type, config: {}, values });
  return {
    refId,
    length: samples.length,
    fields: [
      field('Time', data.FieldType.time, samples.map(({ value }) => value[0] * 1000)),
      ...labels.map((label) => field(label, data.FieldType.string, samples.map(({ metric }) => metric[label] ?? ''))),
      field(alone ? 'Value' : `Value #${refId}`, data.FieldType.number, samples.map(({ value }) => Number(value[1]))),
    ],
  };
}

function seriesFrames(refId, samples, legend) {
  return samples.map(({ metric, value }) => ({
    refId,
    length: 1,
    fields: [
      { name: 'Time', type: data.FieldType.time, config: {}, values: [value[0] * 1000] },
      {
        name: 'Value',
        type: data.FieldType.number,
        config: { displayNameFromDS: legend.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => metric[label] ?? '') },
        labels: metric,
        values: [Number(value[1])],
      },
    ],
  }));
}

function transformed(steps, frames) {
  return new Promise((resolve, reject) => data.transformDataFrame(steps, frames).subscribe({ next: resolve, error: reject }));
}

async function shown({ panel, answers }) {
  const tables = panel.targets.every((target) => target.format === 'table');
  const frames = panel.targets.flatMap((target) => {
    const samples = answers[target.refId] ?? [];
    return tables ? tableFrame(target.refId, samples, panel.targets.length === 1) : seriesFrames(target.refId, samples, target.legendFormat);
  });
  const done = data.applyFieldOverrides({
    data: await transformed(panel.transformations ?? [], frames),
    fieldConfig: panel.fieldConfig,
    fieldConfigRegistry: settings,
    replaceVariables: (text) => text,
    theme: data.createTheme(),
    timeZone: 'utc',
  });
  const text = (field, index) => data.formattedValueToString(field.display(field.values[index]));
  if (!tables) {
    const rows = done.map((frame) => [data.getFieldDisplayName(frame.fields[1], frame, done), text(frame.fields[1], 0)]);
    return { title: panel.title, columns: ['name', 'value'], rows };
  }
  const [frame] = done;
  return {
    title: panel.title,
    columns: frame.fields.map((field) => data.getFieldDisplayName(field, frame, done)),
    rows: Array.from({ length: frame.length }, (_, row) => frame.fields.map((field) => text(field, row))),
  };
}

let input = '';
process.stdin.on('data', (chunk) => (input += chunk));
process.stdin.on('end', async () => process.stdout.write(JSON.stringify(await Promise.all(JSON.parse(input).map(shown)))));
