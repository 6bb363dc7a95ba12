// What Grafana's panels do with field configuration: defaults of their kind, overrides, transformations.
import {
  type DataFrame, type FieldConfigPropertyItem, type GrafanaTheme2, Registry, applyFieldOverrides,
  cacheFieldDisplayNames, standardTransformers, standardTransformersRegistry, transformDataFrame,
} from '@grafana/data';
import { lastValueFrom } from 'rxjs';

/** The defaults of each kind of panel, which are in Grafana's program and not in its libraries. */
const CUSTOM: Record<string, any> = {
  timeseries: {
    drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0, gradientMode: 'none',
    showPoints: 'auto', pointSize: 5, spanNulls: false, axisPlacement: 'auto', axisColorMode: 'text', barAlignment: 0,
    barWidthFactor: 0.6, scaleDistribution: { type: 'linear' }, stacking: { mode: 'none', group: 'A' },
    thresholdsStyle: { mode: 'off' }, hideFrom: { tooltip: false, viz: false, legend: false },
  },
  table: { align: 'auto', inspect: false, cellOptions: { type: 'auto' }, footer: { reducers: [] } },
};

const STANDARD = [
  'unit', 'min', 'max', 'decimals', 'displayName', 'color', 'mappings', 'thresholds', 'links', 'noValue', 'fieldMinMax',
];

const CUSTOM_PATHS = [
  ...Object.keys(CUSTOM.timeseries), 'lineStyle', 'transform', 'axisCenteredZero', 'axisLabel', 'axisSoftMin', 'axisSoftMax',
  'fillBelowTo', 'lineColor', 'axisBorderShow', 'axisGridShow', 'insertNulls',
  ...Object.keys(CUSTOM.table), 'width', 'minWidth', 'filterable', 'wrapText', 'hidden',
];

// The library exports the machinery but not the list of properties.
const PROPERTIES = new Registry<FieldConfigPropertyItem>(() => [
  ...STANDARD.map((path) => property(path, path, false)),
  ...CUSTOM_PATHS.map((path) => property(`custom.${path}`, path, true)),
]);

function property(id: string, path: string, isCustom: boolean): FieldConfigPropertyItem {
  return {
    id, path, isCustom, name: id, description: '', editor: () => null, override: () => null,
    process: (value: any) => value, shouldApply: () => true,
  } as unknown as FieldConfigPropertyItem;
}

standardTransformersRegistry.setInit(() => {
  const byId = new Map(Object.values(standardTransformers).map((one: any) => [one.id, one]));
  return [...byId.values()].map((transformation) => ({
    id: transformation.id, name: transformation.name, transformation,
  })) as any;
});

/** Return the frames of *panel* as Grafana would hand them to it. */
export async function prepare(
  panel: any, frames: DataFrame[], theme: GrafanaTheme2, replaceVariables: (text: string) => string
): Promise<DataFrame[]> {
  const transformed = await lastValueFrom(transformDataFrame(panel.transformations ?? [], frames));
  const configured = applyFieldOverrides({
    data: transformed,
    fieldConfig: fieldConfig(panel),
    fieldConfigRegistry: PROPERTIES,
    replaceVariables,
    theme,
    timeZone: 'utc',
  });
  cacheFieldDisplayNames(configured);
  return configured;
}

/** Return the field configuration of *panel* with the defaults of its kind. */
export function fieldConfig(panel: any) {
  const { defaults = {}, overrides = [] } = panel.fieldConfig ?? {};
  return {
    defaults: {
      thresholds: { mode: 'absolute', steps: [{ value: -Infinity, color: 'green' }, { value: 80, color: 'red' }] },
      color: { mode: panel.type === 'timeseries' ? 'palette-classic' : 'thresholds' },
      ...withBase(defaults),
      custom: { ...CUSTOM[panel.type], ...defaults.custom },
    },
    overrides: overrides.map((one: any) => ({
      ...one,
      properties: one.properties.map((set: any) =>
        set.id === 'thresholds' ? { ...set, value: withBase({ thresholds: set.value }).thresholds } : set
      ),
    })),
  };
}

/** JSON has no infinity, so the lowest step of thresholds has null. */
function withBase(defaults: any) {
  if (!defaults.thresholds) {
    return defaults;
  }
  const steps = defaults.thresholds.steps.map((step: any) => ({ ...step, value: step.value ?? -Infinity }));
  return { ...defaults, thresholds: { ...defaults.thresholds, steps } };
}
