// Checks dashboards against the types that Grafana publishes: node validate.cjs FILE... prints what does not fit.
const fs = require('fs');
const path = require('path');
const Ajv = require('ajv').default;
const { createGenerator } = require('ts-json-schema-generator');

const schema = createGenerator({
  path: path.join(__dirname, 'shapes.ts'),
  tsconfig: path.join(__dirname, 'tsconfig.json'),
  type: 'Shapes',
  skipTypeCheck: true,
  additionalProperties: false,
  expose: 'none',
}).createSchema('Shapes');
const ajv = new Ajv({ allErrors: true, strict: false, validateFormats: false });
ajv.addSchema(schema, 'shapes');

function problems(part, value, where) {
  const validate = ajv.getSchema(`shapes#/definitions/Shapes/properties/${part}`);
  if (validate === undefined) {
    return [`${where}: nothing published about ${part}`];
  }
  validate(value);
  return (validate.errors ?? []).map(
    (error) => `${where}${error.instancePath}: ${error.message} ${JSON.stringify(error.params)}`
  );
}

const found = process.argv.slice(2).flatMap((file) => {
  const board = JSON.parse(fs.readFileSync(file, 'utf8'));
  return [
    ...problems('dashboard', board, path.basename(file)),
    ...board.panels
      .filter((panel) => panel.type !== 'row')
      .flatMap((panel) => {
        const custom = panel.fieldConfig.defaults.custom;
        return [
          ...problems(`options/properties/${panel.type}`, panel.options ?? {}, panel.title),
          ...(custom ? problems(`custom/properties/${panel.type}`, custom, panel.title) : []),
        ];
      }),
  ];
});
process.stdout.write(JSON.stringify(found));
