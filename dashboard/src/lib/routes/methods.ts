/** The methods that people choose from. */
export const METHODS = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE'];
